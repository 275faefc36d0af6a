"""Where faults.py strikes runs at drawn moments and compares them with one left alone."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxunlearn import build
from jaxunlearn.reports import writer
from tests import nets, runs, tiny_folder
from tests.runs import PHASES, Run
from tests.tiny_folder import STEPS

LAUNCHES = 3  # in which a run must finish once nobody strikes


@dataclasses.dataclass
class Moment:
  """So long after a launch is first seen in a phase with so many steps done, or beyond."""

  at: float  # s from the launch of a run left alone
  phase: str
  lines: int
  delay: float  # s
  since: float | None = None

  def __call__(self, run: Run) -> bool:
    here = PHASES.index(run.phase(STEPS))
    if self.since is None and here >= PHASES.index(self.phase) and run.lines() >= self.lines:
      self.since = time.monotonic()
    return self.since is not None and time.monotonic() - self.since >= self.delay


@dataclasses.dataclass
class Timeline:
  """What a run left alone did: [s from its launch, phase, steps done] of each change; its end."""

  marks: list[list[Any]]
  end: float

  def draw(self, rng: np.random.Generator, phase: str = "") -> Moment:
    """A moment of that phase, or of any, each as likely as it is long."""
    ends = [mark[0] for mark in self.marks[1:]] + [self.end]
    spans = list(zip(self.marks, ends, strict=True))
    spans = [span for span in spans if span[0][1] == phase] or spans
    seconds = np.array([end - mark[0] for mark, end in spans])
    i = rng.choice(len(spans), p=seconds / seconds.sum())
    (start, phase, lines), delay = spans[i][0], rng.uniform(0, seconds[i])
    return Moment(start + delay, phase, lines, delay)


class Lab:
  """The pictures, the compiled programs and the run left alone that all cases share."""

  def __init__(self, root: pathlib.Path):
    self.root, self.pictures, self.base = root, root / "pictures", root / "base"
    config = tiny_folder.get_config()
    config.data.path = str(self.pictures)
    if not (root / "timelines.json").exists():
      shutil.rmtree(root, ignore_errors=True)
      tiny_folder.draw(self.pictures)
      self._left_alone()
    setup = build.build(config)
    self._target = build.make_state(setup, nets.random_params(setup.net))
    self.cold, self.warm = (
      Timeline(*each) for each in json.loads((root / "timelines.json").read_text())
    )
    self._whole = Run(root / "cold", ()).result(self._target)
    if different := self.differences(Run(root / "warm", ())):
      raise SystemExit(f"programs that were compiled and cached ones differ: {different}")

  def run(self, name: str, cold: bool = False) -> Run:
    """A run in a directory of its own, which does not exist yet; a cold one has to compile."""
    workdir = self.root / name
    programs = workdir.with_suffix(".programs") if cold else self.root / "programs"
    for stale in (workdir, *([programs] if cold else [])):
      shutil.rmtree(stale, ignore_errors=True)
    flags = ["--config=tests/tiny_folder.py", f"--config.data.path={self.pictures}"]
    environment = {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "",
      "JAX_COMPILATION_CACHE_DIR": str(programs),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return Run(workdir, flags, environment)

  def from_base(self, name: str) -> Run:
    """A run that was killed when it had two checkpoints."""
    run = self.run(name)
    shutil.copytree(self.base, run.workdir)
    return run

  def differences(self, run: Run) -> list[str]:
    return runs.differences(run.result(self._target), self._whole)

  def finish(self, run: Run, strikes: Sequence[dict], may_fall_back: bool = False) -> dict:
    """Launches the run until it ends well, and compares it with the one left alone."""
    codes: list[int] = []
    while codes[-1:] != [0] and len(codes) < LAUNCHES:
      codes.append(runs.wait(run.launch()))
    different = [f"exit codes {codes}"] if codes[-1] else self.differences(run)
    lost = (run.workdir / "damaged").exists() and not may_fall_back
    if not different:
      shutil.rmtree(run.workdir, ignore_errors=True)
    return {"strikes": strikes, "launches": len(codes), "different": different, "lost": lost}

  def _left_alone(self) -> None:
    """One run that compiles, one that need not, and one killed between two checkpoints."""
    timelines = [self._watch("cold"), self._watch("warm")]
    two = lambda run: len(run.saves()) == 2
    self.run(self.base.name).end_at(two, subprocess.Popen.kill)
    writer.replace(self.root / "timelines.json", json.dumps(timelines))

  def _watch(self, name: str) -> tuple[list[list[Any]], float]:
    began, marks, run = time.monotonic(), [], self.run(name)

    def look(run: Run) -> bool:
      here = [run.phase(STEPS), run.lines()]
      if not marks or marks[-1][1:] != here:
        marks.append([time.monotonic() - began, *here])
      return False

    if run.end_at(look, lambda _: None):
      raise SystemExit(run.log())
    return marks, time.monotonic() - began


def strike(
  run: Run, moment: Moment, how: Callable[[subprocess.Popen], object], codes: Sequence[int]
) -> dict:
  """One launch, struck at a moment; `where` is empty if it had ended before."""
  where = []

  def act(process: subprocess.Popen) -> None:
    ended = process.poll() is not None
    how(process)
    where.append("" if ended else run.phase(STEPS))

  code = run.end_at(moment, act)
  if code == 0 and 0 not in codes:
    where[0] = ""  # it ended while it was struck
  return outcome(run, where[0], code, codes)


def outcome(run: Run, where: str, code: int, codes: Sequence[int]) -> dict:
  """How a launch ended, its code as a shell has it; 2 must come with one line that says why."""
  code = 128 - code if code < 0 else code
  said = [line for line in run.log().splitlines() if line.startswith("error: ")]
  clear = code != 2 or (len(said) == 1 and "Traceback" not in run.log())
  line = said[-1].replace(str(run.workdir.parent), "DIR") if said else ""
  return {"where": where, "code": code, "line": line, "documented": clear and code in codes}
