"""Bad input, counted: is all of it one line and exit code 2?

  python -m tests.fuzz --tries=10000 --out=results

Each try draws one input of a kind by the seed and its number: a field of a config of configs/ with
a wrong type, sign or size; a command line; a config file; a list of ids; pictures, weights and a
run's own files with bits flipped or ends cut off. It ends well where the input is accepted, or is
refused as the command line says it: one line. Anything else is printed with its number, which
`--first=NUMBER --tries=1` repeats.
"""

import argparse
import collections
import contextlib
import functools
import importlib
import io
import json
import os
import pathlib
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict
from tqdm import tqdm

from configs import common
from jaxunlearn import build, checkpoint, data, errors, fields, main, pipeline, train
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.reports import report, writer
from tests import fuzz_files, tiny_config

ROOT = pathlib.Path(__file__).parents[1]
# Of what another command wrote, which is not here, or no config.
NEEDY = ("__init__", "audits", "table_siss_sd", "table_little_sd")
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in NEEDY)
COMMANDS = [name for name in CONFIGS if not name.startswith(("common", "audit", "table_emoji"))]
REFUSED = (
  ValueError,
  OSError,
  checkpoint.Damaged,
  train.Diverged,
)  # main.main says these in a line
WRONG: tuple[Any, ...] = (
  *(
    None,
    "",
    "x",
    "0",
    "nan",
    "a\nb",
    "ä\u0301\u202e",
    "\0",
    "-1",
    "x" * 5000,
    "../..",
    "/",
    "~",
    "*",
  ),
  *(0, 1, -1, 2, 3, 7, 2**31, 2**32, 2**63, -(2**63), 10**30, True, False),
  *(0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
  *((), (0,), (1, 2), (-1,), ("x",), ("x", 0), (None,), ((),), [], ["x"], [0], {}, {"x": 1}, b"x"),
)
GARBAGE = (
  "=",
  "--",
  "-",
  "--config",
  "--=1",
  "--config.=1",
  "--no",
  "--help=1",
  "x",
  "",
  "\n",
  "--workdir",
)


class Lab:
  """A folder with pictures, weights and a run to damage, each made once."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.files = fuzz_files.Files(root)


@functools.cache
def config_of(name: str) -> ConfigDict:
  module = importlib.import_module(f"configs.{name}")
  return module.get_config() if hasattr(module, "get_config") else common.get_config()


@functools.cache
def embedded(source: Any) -> Any:
  """What a source reads of the package's own files, once."""
  return type(source).load(source)


def load(source: str, **values: Any) -> Any:
  """data.load, but that embedded sets are kept."""
  made = data.make(source, **values)
  keeps = source in ("mnist_tshirt", "fashion", "emoji", "digits_clothes")
  return embedded(made) if keeps else made.load()


def accept(config: ConfigDict, workdir: pathlib.Path) -> None:
  """All that a launch does with a config before its first parameter."""
  if "runs" in config:
    pipeline.check(config)
  elif "autoencoder" in config:
    fields.check(config)
  elif "sources" in config:
    Cdm(config, workdir)
  else:
    build.build(config)


def wrong_field(lab: Lab, rng: np.random.Generator) -> str:
  """One field of a config, as a config file could set it."""
  name = CONFIGS[rng.integers(len(CONFIGS))]
  config = config_of(name)
  if "runs" in config:  # one of them
    config = config.runs[sorted(config.runs)[rng.integers(len(config.runs))]]
  config = target = config.copy_and_resolve_references()
  paths = [path for path, _ in fields.leaves(target, set())]
  path = paths[rng.integers(len(paths))]
  group, _, leaf = path.rpartition(".")
  for part in group.split(".") if group else ():
    target = target[part]
  value = WRONG[rng.integers(len(WRONG))]
  own = contextlib.suppress(TypeError, OverflowError, KeyError, ValueError)  # of ConfigDict
  with config.unlocked(), config.ignore_type(), own:
    target[leaf] = value
  accept(config, lab.root / "run")
  return f"{name} {path}={value!r:.40}"


def flag(lab: Lab, rng: np.random.Generator) -> str:
  """A command line: fields with words of all kinds, and what is no flag."""
  name = COMMANDS[rng.integers(len(COMMANDS))]
  config = config_of(name)
  paths = [path for path, _ in fields.leaves(config, set()) if not path.startswith("runs.")]
  argv = [f"--config=configs/{name}.py", f"--workdir={lab.root}/run"]
  for _ in range(rng.integers(1, 4)):
    path, word = paths[rng.integers(len(paths))], WRONG[rng.integers(len(WRONG))]
    if rng.random() < 0.2:
      path = fuzz_files.mutated(path, rng)
    argv.append(f"--config.{path}={word}")
  if rng.random() < 0.3:
    argv.insert(rng.integers(len(argv) + 1), GARBAGE[rng.integers(len(GARBAGE))])
  if rng.random() < 0.1:
    argv[0] = fuzz_files.mutated(argv[0], rng)
  accept(parsed(argv), lab.root / "run")
  return " ".join(argv)


def config_file(lab: Lab, rng: np.random.Generator) -> str:
  """A config file that is another kind of Python, or none."""
  path = lab.root / "config.py"
  text = (ROOT / "tests" / "tiny_config.py").read_text()
  how = rng.integers(3)
  if how == 0:
    text = fuzz_files.CONFIG_FILES[rng.integers(len(fuzz_files.CONFIG_FILES))]
  for _ in range(rng.integers(1, 4) if how else 0):
    text = fuzz_files.mutated(text, rng)
  path.write_bytes(text.encode(errors="surrogatepass"))
  argv = [
    f"--config={path}{('', ':x', ':', ':siss')[rng.integers(4)]}",
    f"--workdir={lab.root}/run",
  ]
  accept(parsed(argv), lab.root / "run")
  return argv[0]


def parsed(argv: list[str]) -> ConfigDict:
  """main.parse_flags, in a process that has read other command lines before."""
  for name in [name for name in flags.FLAGS if name.startswith("config.")]:
    delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  for name in ("config", "workdir", "dry_run", "topology", "distributed"):
    flags.FLAGS[name].unparse()
  sys.modules.pop("config_config", None)
  sys.argv = ["main", *argv]
  main.parse_flags(sys.argv)
  return main._CONFIG.value


def ids(lab: Lab, rng: np.random.Generator) -> str:
  """A list of ids in some encoding, with some line ends, names normalised in some way."""
  names = lab.files.names
  lines = [names[i] for i in rng.integers(len(names), size=rng.integers(0, 4))]
  form = ("NFC", "NFD", "NFKD")[rng.integers(3)]
  text = ("\n", "\r\n", "\r", "\u2028", ",")[rng.integers(5)].join(lines)
  text = unicodedata.normalize(form, text) + ("", "\n", " ", "\n\n")[rng.integers(4)]
  encoding = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")[rng.integers(6)]
  content = text.encode(encoding, errors="replace")
  path = lab.root / "ids.txt"
  path.write_bytes(fuzz_files.damaged(content, rng) if rng.random() < 0.5 else content)
  config = lab.files.config()
  config.forget.update(label="", file=str(path))
  if rng.random() < 0.3:
    config.forget.update(file="", ids=tuple(lines) or ("sha256:" + "0A" * 32,))
  build.build(config)
  return f"{encoding} {form} {lines}"


def picture(lab: Lab, rng: np.random.Generator) -> str:
  """A picture that is cut short or has other bytes, of every format and mode."""
  folder = lab.root / "pictures"
  path = lab.files.fresh_picture(folder, rng)
  config = lab.files.config(folder)
  config.data.update(
    verify=bool(rng.integers(2)),
    convert=bool(rng.integers(2)),
    unreadable=("stop", "skip")[rng.integers(2)],
    channels=int(rng.choice([1, 3])),
  )
  records = data.load(**config.data)[0]
  records.image[np.arange(len(records))]
  records.fingerprint()
  return path.name


def weights(lab: Lab, rng: np.random.Generator) -> str:
  """A folder in diffusers' layout with one damaged file."""
  folder, name = lab.files.damaged_copy(lab.files.weights, "weights", rng)
  config = tiny_config.get_config("siss")
  config.init_from = str(folder)
  if rng.random() < 0.7:
    with config.unlocked():
      config.model = {"name": "pretrained", "dtype": "float32"}
  build.start_params(build.build(config))
  return name


def run_files(lab: Lab, rng: np.random.Generator) -> str:
  """A run's directory with one damaged file, launched again: its notes, curves and checkpoints."""
  folder, name = lab.files.damaged_copy(lab.files.run, "again", rng)
  setup = lab.files.setup
  train.claim(folder, setup.config, setup.entries())
  with contextlib.closing(checkpoint.Checkpoints(folder / "checkpoints")) as saves:
    saves.restore(lab.files.state)
  with writer.Writer(folder / "metrics.jsonl", 2):
    pass
  if rng.random() < 0.3:
    fresh = setup.config.copy_and_resolve_references()
    fresh.init_from = str(folder)
    build.start_params(build.build(fresh))
  report.write(folder)
  return name


KINDS: dict[str, tuple[Callable[[Lab, np.random.Generator], str], float]] = {
  "a field of a config": (wrong_field, 0.4),
  "a command line": (flag, 0.3),
  "a config file": (config_file, 0.12),
  "a list of ids": (ids, 0.08),
  "a picture": (picture, 0.08),
  "weights of others": (weights, 0.014),
  "files of a run": (run_files, 0.006),
}


def attempt(lab: Lab, number: int, seed: int) -> dict[str, Any]:
  """One try: its kind, and how it ended: accepted, refused or failed, with what was said."""
  rng = np.random.default_rng((seed, number))
  kind = str(rng.choice(list(KINDS), p=[share for _, share in KINDS.values()]))
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      KINDS[kind][0](lab, rng)
    return {"kind": kind, "end": "accepted"}
  except REFUSED as error:
    text = errors.advised(error)
    lines = [text]
  except SystemExit as stop:
    if stop.code == 0:  # help was asked for
      return {"kind": kind, "end": "accepted"}
    text = said.getvalue()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if stop.code != errors.BAD_INPUT or not lines:
      return {"kind": kind, "end": "failed", "said": f"exit {stop.code}: {text[-300:]}"}
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt):
      raise
    return {"kind": kind, "end": "failed", "said": _frames(error)}
  one = len(lines) == 1 and lines[0].isprintable() and 5 < len(lines[0]) < 1200
  return {"kind": kind, "end": "refused" if one else "failed", "said": lines[0] if lines else text}


def _frames(error: BaseException) -> str:
  frames = traceback.extract_tb(error.__traceback__)[-4:]
  where = " < ".join(f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
  return f"{type(error).__name__}: {str(error)[:200]!r} at {where}"


def table(tries: list[dict[str, Any]]) -> str:
  lines = ["| input | tries | accepted | refused in one line | anything else |", "|---" * 5 + "|"]
  ends = collections.Counter((one["kind"], one["end"]) for one in tries)
  for kind in KINDS:
    counts = [ends[kind, end] for end in ("accepted", "refused", "failed")]
    lines.append(f"| {kind} | {sum(counts):,} | {counts[0]:,} | {counts[1]:,} | {counts[2]:,} |")
  totals = [sum(ends[kind, end] for kind in KINDS) for end in ("accepted", "refused", "failed")]
  lines.append(f"| all | {len(tries):,} | {totals[0]:,} | {totals[1]:,} | {totals[2]:,} |")
  return "\n".join(lines) + "\n"


@contextlib.contextmanager
def laboratory() -> Iterator[Lab]:
  """A quiet place to try in, which goes when it is left."""
  level = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  warnings.simplefilter("ignore")
  os.environ["TQDM_DISABLE"] = "1"
  whole, data.load = data.load, load
  try:
    with tempfile.TemporaryDirectory(prefix="fuzz") as root:
      yield Lab(pathlib.Path(root))
  finally:
    data.load = whole
    logging.set_verbosity(level)


def tried(first: int, count: int, seed: int) -> Iterator[dict[str, Any]]:
  argv = sys.argv
  with laboratory() as lab:
    for number in range(first, first + count):
      yield {"number": number, **attempt(lab, number, seed)}
  sys.argv = argv


def main_() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tries", type=int, default=10_000)
  parser.add_argument("--first", type=int, default=0, help="the number of the first try")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, help="a folder for fuzz.md and fuzz.json")
  parser.add_argument("--verbose", action="store_true", help="print what was said each time")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  tries = []
  for one in tqdm(tried(args.first, args.tries, args.seed), total=args.tries, disable=False):
    tries.append(one)
    if one["end"] == "failed" or args.verbose:
      print(json.dumps(one), file=sys.stderr, flush=True)
  print(table(tries))
  if args.out:
    args.out.mkdir(parents=True, exist_ok=True)
    counts = collections.Counter((one["kind"], one["end"]) for one in tries)
    rows = [{"kind": k, "end": end, "tries": n} for (k, end), n in sorted(counts.items())]
    found = {"seed": args.seed, "first": args.first, "tries": len(tries), "counts": rows}
    failed = [one for one in tries if one["end"] == "failed"]
    writer.replace(args.out / "fuzz.md", table(tries))
    writer.replace(args.out / "fuzz.json", json.dumps(found | {"failed": failed}, indent=2) + "\n")
  sys.exit(any(one["end"] == "failed" for one in tries))


if __name__ == "__main__":
  main_()
