"""Faults, counted: what a run does when it is killed, stopped, damaged, out of disk or of data.

  python -m tests.faults --out=results
  python -m tests.faults --quick            (one case of each)

Every case is a run of tests/tiny_folder.py that is struck and then launched again until it ends:
its parameters, their average, the optimiser's state, metrics and results must be those of a run
left alone, bit for bit. Moments are drawn by a seed: a phase of a run, then a time within it.
The script goes on where it was stopped.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxunlearn.reports import writer
from tests import runs
from tests.lab import Lab, outcome, strike
from tests.runs import PHASES
from tests.tiny_folder import STEPS

KILLS, STOPS = 5, 2  # of one run
COLD = 5  # one killed run in so many has to compile its programs itself
SEED = 0
NAMESPACE = ("unshare", "--map-root-user", "--mount")  # in which a disk may be mounted
ROOM = "64m"


def killed(lab: Lab, rng: np.random.Generator, case: int) -> dict:
  """SIGKILL, again and again; runs of an even number are killed ever later."""
  cold = case % COLD == 0
  run = lab.run(f"killed{case}", cold)
  timeline, phases = (lab.cold, ("",)) if cold else (lab.warm, PHASES)
  moments = [timeline.draw(rng, rng.choice(phases)) for _ in range(KILLS)]
  if case % 2 == 0:
    moments.sort(key=lambda moment: moment.at)
  how = subprocess.Popen.kill
  return lab.finish(run, [strike(run, moment, how, (137,)) for moment in moments])


def stopped(lab: Lab, rng: np.random.Generator, case: int) -> dict:
  """SIGTERM: what is done is saved, or nothing was left to do."""
  run, how = lab.run(f"stopped{case}"), subprocess.Popen.terminate
  moments = [lab.warm.draw(rng, rng.choice(PHASES)) for _ in range(STOPS)]
  return lab.finish(run, [strike(run, moment, how, (143, 0)) for moment in moments])


def flip(path: pathlib.Path, rng: np.random.Generator) -> None:
  content = bytearray(path.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  path.write_bytes(content)


def truncate(path: pathlib.Path, rng: np.random.Generator) -> None:
  os.truncate(path, rng.integers(path.stat().st_size))


def delete(path: pathlib.Path, rng: np.random.Generator) -> None:
  del rng
  path.unlink()


DAMAGES = {"bit flipped": flip, "cut short": truncate, "deleted": delete}


def damaged(lab: Lab, rng: np.random.Generator, case: int) -> dict:
  """One file of the newest checkpoint, the likelier the larger: the one before is used, or none
  of the bytes was needed.
  """
  run, kind = lab.from_base(f"damaged{case}"), list(DAMAGES)[case % len(DAMAGES)]
  files = runs.files(run.workdir / "checkpoints" / str(run.saves()[-1]))
  sizes = np.array([path.stat().st_size for path in files])
  DAMAGES[kind](files[rng.choice(len(files), p=sizes / sizes.sum())], rng)
  code = runs.wait(run.launch())
  seen = "fell back" if (run.workdir / "damaged").exists() else "harmless"
  return lab.finish(run, [outcome(run, f"{kind}, {seen}", code, (0,))], may_fall_back=True)


def all_damaged(lab: Lab, rng: np.random.Generator, case: int) -> dict:
  """Every file of every checkpoint: the run says so, and begins anew when launched again."""
  run, kind = lab.from_base(f"all_damaged{case}"), list(DAMAGES)[case % len(DAMAGES)]
  for path in runs.files(run.workdir / "checkpoints"):
    DAMAGES[kind](path, rng)
  code = runs.wait(run.launch())
  return lab.finish(run, [outcome(run, kind, code, (2,))], may_fall_back=True)


def full(lab: Lab, rng: np.random.Generator, case: int) -> dict:
  """A disk smaller than what a run leaves on it; then it is made larger."""
  run, cases = lab.run(f"full{case}"), FAULTS["a full disk"][1]
  run.workdir.mkdir()
  needed = sum(path.stat().st_size for path in runs.files(lab.base))
  share = (case % cases + rng.random()) / cases
  mount = ["mount", "-t", "tmpfs", "faults", run.workdir, "-o"]
  subprocess.run([*mount, f"size={4096 + int(share * needed)}"], check=True)
  try:
    code = runs.wait(run.launch())
    struck = outcome(run, run.phase(STEPS), code, (2,))
    subprocess.run([*mount, f"remount,size={ROOM}"], check=True)
    return lab.finish(run, [struck])
  finally:
    subprocess.run(["umount", run.workdir], check=True)


def no_pictures(lab: Lab, rng: np.random.Generator, case: int) -> dict:
  """Their folder is renamed while the run goes on; then it is put back."""
  run, away = lab.run(f"no_pictures{case}"), lab.root / "away"
  moment = lab.warm.draw(rng, rng.choice(PHASES[:-1]))
  struck = strike(run, moment, lambda _: lab.pictures.rename(away), (2, 0))
  away.rename(lab.pictures)
  return lab.finish(run, [struck])


FAULTS = {  # what makes one case, and how many strikes are wanted of all
  "SIGKILL": (killed, 50),
  "SIGTERM": (stopped, 10),
  "a file of the newest checkpoint": (damaged, 12),
  "every file of every checkpoint": (all_damaged, 3),
  "a full disk": (full, 8),
  "the pictures are away": (no_pictures, 8),
}


def landed(cases: Sequence[dict], fault: str) -> list[dict]:
  """The strikes of a fault; one that came after the end of a run does not count."""
  mine = [case["strikes"] for case in cases if case["fault"] == fault]
  return [struck for struck in itertools.chain(*mine) if struck["where"]]


def to_do(cases: Sequence[dict], faults: Sequence[str], quick: bool) -> Iterator[tuple[str, int]]:
  """The fault and number of each case still to be made; `cases` grows meanwhile."""
  for fault in faults:
    while len(landed(cases, fault)) < (1 if quick else FAULTS[fault][1]):
      yield fault, sum(case["fault"] == fault for case in cases)


def ended_well(case: dict) -> bool:
  return not case["different"] and not case["lost"]


def documented(case: dict) -> bool:
  return all(struck["documented"] for struck in case["strikes"] if struck["where"])


def counted(values: Sequence[Any]) -> str:
  order = lambda item: (PHASES.index(item[0]) if item[0] in PHASES else 0, item[0])
  return ", ".join(f"{k} ({n})" for k, n in sorted(collections.Counter(values).items(), key=order))


def row(cases: Sequence[dict], fault: str) -> str:
  strikes, mine = landed(cases, fault), [case for case in cases if case["fault"] == fault]
  if not strikes:
    return f"| {fault} | not run | | | | |"
  where, codes = ([struck[key] for struck in strikes] for key in ("where", "code"))
  documented = sum(struck["documented"] for struck in strikes)
  equal = f"{sum(map(ended_well, mine))} of {len(mine)}"
  cells = [fault, len(strikes), counted(where), counted(codes), documented, equal]
  return f"| {' | '.join(map(str, cells))} |"


def table(cases: Sequence[dict]) -> str:
  head = ["fault", "times", "where, or how", "exit code", "as documented", "runs equal in the end"]
  lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
  return "\n".join([*lines, *(row(cases, fault) for fault in FAULTS)]) + "\n"


def make(lab: Lab, fault: str, number: int) -> dict:
  """One case; its random numbers are those of its fault and number."""
  rng = np.random.default_rng([SEED, list(FAULTS).index(fault), number])
  before = _cpu_seconds()
  case = FAULTS[fault][0](lab, rng, number)
  return {"fault": fault, "case": number, **case, "cpu_seconds": round(_cpu_seconds() - before)}


def _cpu_seconds() -> float:
  """What the launches have used so far."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def may_mount() -> bool:
  """Goes on in a namespace of its own, where this user may mount a disk; False where none may."""
  if "FAULTS_NAMESPACE" not in os.environ:
    if subprocess.run([*NAMESPACE, "true"], check=False).returncode:
      print("no namespace to mount a disk in: the full disk is not run", file=sys.stderr)
      return False
    command = [*NAMESPACE, sys.executable, "-m", "tests.faults", *sys.argv[1:]]
    os.execvpe(command[0], command, os.environ | {"FAULTS_NAMESPACE": "1"})
  return True


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/faults"))
  parser.add_argument("--out", type=pathlib.Path, help="a folder for reliability.md and .json")
  parser.add_argument("--quick", action="store_true", help="one case of each fault")
  args = parser.parse_args()
  mountable = may_mount()
  faults = [fault for fault in FAULTS if mountable or fault != "a full disk"]
  jax.config.update("jax_platforms", "cpu")
  lab = Lab(args.workdir.absolute())
  log = lab.root / "cases.jsonl"
  cases = writer.read(log)
  bar = tqdm(to_do(cases, faults, args.quick), desc="cases", initial=len(cases))
  for fault, number in bar:
    bar.set_postfix_str(f"{fault} {number}")
    cases.append(make(lab, fault, number))
    with log.open("a") as file:
      file.write(json.dumps(cases[-1]) + "\n")
  print(table(cases))
  if args.out:
    writer.replace(args.out / "reliability.md", table(cases))
    writer.replace(args.out / "reliability.json", json.dumps(cases, indent=2) + "\n")
  bad = [case for case in cases if not ended_well(case) or not documented(case)]
  for case in bad:
    print(f"not as documented: {json.dumps(case)}", file=sys.stderr)
  sys.exit(bool(bad))


if __name__ == "__main__":
  main()
