"""Runs of the command line that are launched, struck and compared: resume_test.py, faults.py."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from jaxunlearn import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
PHASES = (  # in the order in which a run goes through them; step and save alternate
  "start",
  "evaluation before",
  "restore",
  "compile",
  "step",
  "save",
  "evaluation after",
  "report",
)
FILES = ("metrics.jsonl", "evals/before.json", "evals/after.json", "results.json")
PATIENCE = 600  # seconds after which a launch counts as hanging


class Run:
  """`python -m jaxunlearn.main` with these flags in one working directory, launched many times."""

  def __init__(
    self, workdir: pathlib.Path, flags: Sequence[str], environment: Mapping[str, str] | None = None
  ):
    self.workdir = workdir
    self.flags = flags
    self.environment = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
    self.began = 0  # of the newest launch: ns,
    self.saved = 0  # the step of the newest checkpoint at that time,
    self.stale: set[str] = set()  # what the launch before left unfinished,
    self._log_start = 0  # and bytes of the log

  def launch(self) -> subprocess.Popen:
    self.began, self.stale = time.time_ns(), self.unfinished()
    self.saved = max(self.saves(), default=0)
    with self.workdir.with_suffix(".log").open("a") as log:
      self._log_start = log.tell()
      return subprocess.Popen(
        [sys.executable, "-m", "jaxunlearn.main", *self.flags, f"--workdir={self.workdir}"],
        cwd=ROOT,
        env=self.environment,
        stdout=log,
        stderr=log,
      )

  def finish(self) -> None:
    assert wait(self.launch()) == 0, self.log()

  def end_at(
    self, moment: Callable[["Run"], bool], strike: Callable[[subprocess.Popen], object]
  ) -> int:
    """Launches, strikes as soon as `moment(run)` is true; the exit code."""
    process = self.launch()
    while process.poll() is None and not moment(self):
      time.sleep(0.001)
    strike(process)
    return wait(process)

  def unfinished(self) -> set[str]:
    """The saves that have begun, and are not yet renamed to what a restore reads."""
    return {path.name for path in self.workdir.glob("checkpoints/*tmp*")}

  def saves(self) -> list[int]:
    """The steps of its checkpoints."""
    names = (path.name for path in self.workdir.glob("checkpoints/*"))
    return sorted(int(name) for name in names if name.isdigit())

  def log(self) -> str:
    """What the newest launch said."""
    log = self.workdir.with_suffix(".log").read_bytes()
    return log[self._log_start :].decode(errors="replace")

  def lines(self) -> int:
    path = self.workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def phase(self, steps: int) -> str:
    """Where the newest launch is, or where it ended, of a run of so many steps."""
    exists = lambda name: (self.workdir / name).exists()
    written = lambda name: exists(name) and (self.workdir / name).stat().st_mtime_ns > self.began
    if not written("config.json"):
      return "start"
    if not exists("evals/before.json"):
      return "evaluation before"
    if not written("metrics.jsonl"):
      return "restore"
    if self.unfinished() - self.stale:
      return "save"
    if (lines := self.lines()) < steps:
      return "compile" if lines <= self.saved else "step"
    return "report" if exists("evals/after.json") else "evaluation after"

  def result(self, target: checkpoint.State) -> dict[str, bytes | np.ndarray]:
    """The last checkpoint leaf by leaf, restored as `target`, and what was measured."""
    saves = checkpoint.Checkpoints(self.workdir / "checkpoints")
    state = saves.restore(target)
    saves.close()
    leaves = jax.tree.leaves_with_path(jax.device_get(state))
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return arrays | {name: (self.workdir / name).read_bytes() for name in FILES}


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  """All below it that are not empty."""
  return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def differences(
  got: Mapping[str, bytes | np.ndarray], want: Mapping[str, bytes | np.ndarray]
) -> list[str]:
  """The leaves and files of two results that are not equal bit for bit."""
  bits = lambda value: value if isinstance(value, bytes) else (value.dtype, value.tobytes())
  both = got.keys() & want.keys()
  return sorted((got.keys() ^ want.keys()) | {k for k in both if bits(got[k]) != bits(want[k])})


def wait(process: subprocess.Popen) -> int:
  """The exit code; a run that hangs is not left behind."""
  try:
    return process.wait(timeout=PATIENCE)
  finally:
    process.kill()
