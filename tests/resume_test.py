"""A run that is stopped or killed at any moment ends as one left alone, bit for bit."""

import subprocess

import pytest

from jaxunlearn import build, checkpoint
from tests import nets, runs, tiny_config
from tests.runs import Run

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
def target():
  """What a checkpoint is restored to: a state on another mesh."""
  config = tiny_config.get_config("siss")
  config.mesh.update(data=1, fsdp=1)
  setup = build.build(config)
  return build.make_state(setup, nets.random_params(setup.net))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, target):
  run = Run(tmp_path_factory.mktemp("whole") / "run", FLAGS)
  run.finish()
  return run.result(target)


def assert_as_whole(run: Run, target, whole) -> None:
  assert checkpoint.latest_step(run.workdir) == STEPS
  result = run.result(target)
  assert runs.differences(result, whole) == []
  assert result["metrics.jsonl"].count(b"\n") == STEPS


def test_kill_9_and_sigterm_at_any_moment(tmp_path, target, whole):
  """One run is killed five times; a signal in between saves what is done and exits 143."""
  run = Run(tmp_path / "run", FLAGS)
  for moment in (evaluating_before, compiling, stepping):
    assert run.end_at(moment, subprocess.Popen.kill) == -9, run.log()
  began = run.lines()
  later = lambda run: stepping(run) and run.lines() > began + 4
  assert run.end_at(later, subprocess.Popen.terminate) == 143, run.log()
  assert checkpoint.latest_step(run.workdir) == run.lines() < STEPS
  for moment in (saving, evaluating_after):
    assert run.end_at(moment, subprocess.Popen.kill) == -9, run.log()
    assert not (run.workdir / "results.json").exists()
  run.finish()
  assert_as_whole(run, target, whole)
