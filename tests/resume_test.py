"""A run that is stopped or killed at any moment ends as one left alone, bit for bit."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxunlearn import checkpoint, train
from tests import tiny_config

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 40
FLAGS = [
  "--config=tests/tiny_config.py:siss",
  "--config.mesh.data=2",
  "--config.mesh.fsdp=2",
  f"--config.train.steps={STEPS}",
  "--config.eval.before=True",
  "--config.eval.after=True",
  "--config.eval.samples=8",
  "--config.eval.batch=8",
  "--config.eval.steps=2",
  "--config.eval.metrics=('target_rate',)",
]


class Run:
  """`python -m jaxunlearn.main` on the tiny config and a mesh of 2 x 2, launched many times."""

  def __init__(self, workdir: pathlib.Path):
    self.workdir = workdir
    self.stale: set[str] = set()  # what the launch before left unfinished

  def launch(self) -> subprocess.Popen:
    log = self.workdir.with_suffix(".log").open("a")
    return subprocess.Popen(
      [sys.executable, "-m", "jaxunlearn.main", *FLAGS, f"--workdir={self.workdir}"],
      cwd=ROOT,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=log,
      stderr=log,
    )

  def finish(self) -> None:
    assert wait(self.launch()) == 0, self.log()
    assert checkpoint.latest_step(self.workdir) == STEPS

  def end_at(self, moment, how: signal.Signals) -> int:
    """Launches, sends the signal as soon as `moment(run)` is true; returns the exit code."""
    self.stale = self.unfinished()
    process = self.launch()
    while not moment(self):
      assert process.poll() is None, self.log()
      time.sleep(0.001)
    process.send_signal(how)
    return wait(process)

  def unfinished(self) -> set[str]:
    """The saves that have begun, and are not yet renamed to what a restore reads."""
    return {path.name for path in self.workdir.glob("checkpoints/*tmp*")}

  def log(self) -> str:
    return self.workdir.with_suffix(".log").read_text()

  def lines(self) -> int:
    path = self.workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0

  def result(self):
    """The last checkpoint, on another mesh; the log; and what was measured."""
    config = tiny_config.get_config("siss")
    config.mesh.update(data=1, fsdp=1)
    setup = train.build(config)
    target = train.make_state(setup, setup.net.init(jax.random.key(1)))
    saves = checkpoint.Checkpoints(self.workdir / "checkpoints")
    state = saves.restore(target)
    saves.close()
    files = ("metrics.jsonl", "evals/before.json", "evals/after.json", "results.json")
    return jax.device_get(state), [(self.workdir / file).read_bytes() for file in files]


def wait(process: subprocess.Popen) -> int:
  """The exit code; a run that hangs is not left behind."""
  try:
    return process.wait(timeout=600)
  finally:
    process.kill()


def evaluating_before(run: Run) -> bool:
  return (run.workdir / "config.json").exists()


def evaluating_after(run: Run) -> bool:
  return run.lines() == STEPS and not run.unfinished()


def compiling(run: Run) -> bool:
  """The first launch is set up, and no step is done."""
  return (run.workdir / "checkpoints").exists() and run.lines() == 0


def stepping(run: Run) -> bool:
  return run.lines() % 4 == 2 and run.lines() > 4


def saving(run: Run) -> bool:
  return bool(run.unfinished() - run.stale)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  run = Run(tmp_path_factory.mktemp("whole") / "run")
  run.finish()
  return run.result()


def assert_as_whole(run: Run, whole) -> None:
  (state, files), (want, want_files) = run.result(), whole
  for got, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(got, leaf)
  assert int(state.step) == STEPS
  assert files == want_files
  assert files[0].count(b"\n") == STEPS


def test_sigterm_saves_and_exits_143(tmp_path, whole):
  run = Run(tmp_path / "run")
  assert run.end_at(stepping, signal.SIGTERM) == 143, run.log()
  assert checkpoint.latest_step(run.workdir) == run.lines() < STEPS
  run.finish()
  assert_as_whole(run, whole)


def test_kill_9_at_any_moment(tmp_path, whole):
  run = Run(tmp_path / "run")
  for moment in (evaluating_before, compiling, stepping, saving, evaluating_after):
    assert run.end_at(moment, signal.SIGKILL) == -signal.SIGKILL, run.log()
    assert not (run.workdir / "results.json").exists()
  run.finish()
  assert_as_whole(run, whole)
