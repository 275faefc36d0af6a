"""Some steps of a run are traced, and nothing of its numbers changes."""

import pytest

from jaxunlearn import build, train
from jaxunlearn.mesh import profiling
from tests import nets, tiny_config


def run(workdir, profile):
  config = tiny_config.get_config()
  config.train.steps, config.profile = 4, profile
  train.run(config, workdir)
  return (workdir / "metrics.jsonl").read_text()


def test_the_steps_of_the_window_are_traced(monkeypatch, tmp_path):
  monkeypatch.setattr(build.models, "make", lambda **_: nets.Line())
  assert run(tmp_path / "traced", "2:3") == run(tmp_path / "plain", "")
  assert [p.suffix for p in (tmp_path / "traced/profile").rglob("*.xplane.pb")] == [".pb"]
  assert not (tmp_path / "plain/profile").exists()


def test_only_the_window(monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(profiling.jax.profiler, "start_trace", lambda folder: seen.append("start"))
  monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: seen.append("stop"))
  step = profiling.traced(lambda: seen.append("step"), 1, "3:4", tmp_path)
  for _ in range(4):
    step()
  assert seen == ["step", "start", "step", "step", "stop", "step"]


def test_a_window_that_is_over_is_not_traced(monkeypatch, tmp_path):
  monkeypatch.delattr(profiling.jax.profiler, "stop_trace")
  step = profiling.traced(lambda: 0, 3, "3:4", tmp_path)
  assert step() == 0


@pytest.mark.parametrize("steps", ["3", "4:3", "0:3", "a:b", "-1:2"])
def test_a_window_that_is_none(steps):
  with pytest.raises(ValueError, match=r"config\.profile is .* use FIRST:LAST"):
    profiling.window(steps)
