"""Signals are answered at once, and a run that is refused leaves nothing that binds the next."""

import json
import os
import signal
import time

import pytest

from jaxunlearn import errors, evaluation, main, pipeline, train
from jaxunlearn.mesh import processes
from tests import tiny_config


def ends_with(codes):
  """Stands in for os._exit."""

  def end(code):
    codes.append(code)
    raise SystemExit

  return end


def said(capfd, word):
  """What came on stderr until the word, which is awaited."""
  text, end = "", time.monotonic() + 10
  while word not in text and time.monotonic() < end:
    text += capfd.readouterr().err
    time.sleep(0.01)
  return text


def test_the_first_signal_gets_a_line_and_a_second_ctrl_c_quits(capfd, monkeypatch):
  codes = []
  monkeypatch.setattr(os, "_exit", ends_with(codes))
  monkeypatch.setattr(processes, "ONE_KEY", 0.0)
  with processes.stop_signal() as stopped:
    assert not stopped()
    signal.raise_signal(signal.SIGINT)
    assert "stopping: what is done is saved" in said(capfd, "quits at once")
    assert stopped() and codes == []
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.05)
    assert codes == []
    signal.raise_signal(signal.SIGINT)
    assert "launch again to go on" in said(capfd, "launch again")
  assert codes == [errors.QUIT]
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert signal.set_wakeup_fd(-1) == -1


def test_a_second_launch_in_a_working_directory_is_refused(tmp_path):
  """One that was told to stop may still be saving when it is launched again."""
  config, workdir = tiny_config.get_config(), tmp_path / "run"
  workdir.mkdir()
  with pipeline.only_here(workdir / pipeline.LOCK), pytest.raises(ValueError) as refused:
    pipeline.run_alone(config, workdir)
  assert f"another launch is at work in {workdir}; wait until" in str(refused.value)
  assert [path.name for path in workdir.iterdir()] == [pipeline.LOCK]
  assert pipeline.run_alone(config, workdir) == pipeline.run_alone(config, workdir)


def test_a_ctrl_c_before_the_run_is_no_traceback(monkeypatch, capsys):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(main.app, "run", interrupted)
  with pytest.raises(SystemExit) as stopped:
    main.start()
  assert stopped.value.code == errors.QUIT
  assert capsys.readouterr().err.strip() == "quit; launch again to go on"


def test_one_key_that_arrives_twice_is_one(monkeypatch):
  """A terminal sends it to a launcher and its processes, and the launcher passes it on."""
  codes = []
  monkeypatch.setattr(os, "_exit", ends_with(codes))
  with processes.stop_signal():
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
  assert codes == []


@pytest.fixture
def config():
  config = tiny_config.get_config("siss")
  config.train.steps = 0
  return config


def refuse(*_):
  raise ValueError("neighbours is 9; use at most 8")


@pytest.mark.parametrize("where", ["make_state", "evaluation"])
def test_a_refused_launch_leaves_nothing_behind(config, tmp_path, monkeypatch, where):
  config.eval.before = True
  run = tmp_path / "run"
  at = (train.build, "make_state") if where == "make_state" else (evaluation.Evaluation, "measure")
  with monkeypatch.context() as patch:
    patch.setattr(*at, refuse)
    with pytest.raises(ValueError, match="neighbours is 9"):
      train.run(config, run)
  assert not run.exists()
  run.mkdir()
  (run / "notes.txt").write_text("mine")
  with monkeypatch.context() as patch:
    patch.setattr(*at, refuse)
    with pytest.raises(ValueError, match="neighbours is 9"):
      train.run(config, run)
  assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_what_an_earlier_launch_left_stays(config, tmp_path, monkeypatch):
  train.claim(tmp_path, config, train.build.build(config).entries())
  before = json.loads((tmp_path / "config.json").read_text())
  monkeypatch.setattr(train.build, "make_state", refuse)
  with pytest.raises(ValueError, match="neighbours is 9"):
    train.run(config, tmp_path)
  assert json.loads((tmp_path / "config.json").read_text()) == before
