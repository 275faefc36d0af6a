"""What the system refuses is one line and exit code 2; what was saved before stays."""

import errno
import os
import resource
import signal
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from jaxunlearn import checkpoint, errors, main, pipeline
from jaxunlearn.mesh import sharding

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl")


def make_state(step):
  params = {"w": jnp.full((64, 64), step, jnp.float32)}
  state = checkpoint.State(np.int32(step), params, params, {}, {})
  mesh = sharding.make_mesh(-1, 1)
  return sharding.put(state, sharding.state_sharding(mesh, state))


@pytest.fixture
def no_large_files():
  """A write beyond 100 bytes fails in this process as on a full disk, with another number."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
  yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
  resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("how", ["wait", "close", "save"])
def test_a_checkpoint_that_cannot_be_written(tmp_path, no_large_files, how):
  saves = checkpoint.Checkpoints(tmp_path / "checkpoints")
  saves.save(make_state(1))
  saves.wait()
  second, third = make_state(2), make_state(3)
  no_large_files()
  with pytest.raises(OSError, match="File too large") as error:
    saves.save(second)
    saves.save(third) if how == "save" else getattr(saves, how)()
  assert error.value.errno == errno.EFBIG
  assert checkpoint.latest_step(tmp_path) == 1


def test_which_errors_of_a_checkpoint_are_the_system_s(tmp_path):
  text = "RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left [os_error_code='28']"
  with pytest.raises(OSError, match="No space left on device") as error, errors.of_system(tmp_path):
    raise ValueError(text)
  assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path))
  with pytest.raises(ValueError, match="a host-local leaf"), errors.of_system(tmp_path):
    raise ValueError("a host-local leaf")


@pytest.mark.parametrize(
  ("error", "says"),
  [
    (FULL, "No space left on device: 'runs/x/metrics.jsonl'; free space and launch again"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "exceeded; free space and launch again"),
    (OSError(errno.EACCES, "Permission denied", "x"), "'x'; put that right and launch again"),
    (ValueError("steps is -1; use 0"), "steps is -1; use 0"),
  ],
)
def test_what_main_says(tmp_path, monkeypatch, capsys, error, says):
  def refuse(*_):
    raise error

  monkeypatch.setattr(pipeline, "run_single", refuse)
  monkeypatch.setattr(threading, "excepthook", threading.excepthook)
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  main.parse_flags(["main", "--config=tests/tiny_config.py", f"--workdir={tmp_path}"])
  with pytest.raises(SystemExit) as stopped:
    main.main([])
  assert stopped.value.code == errors.BAD_INPUT
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and line.endswith(says)


def test_tracebacks_of_other_libraries_do_not_bury_the_line():
  record = lambda **fields: logging.logging.makeLogRecord({"pathname": "orbax/x.py"} | fields)
  raised = (OSError, FULL, None)
  assert not main._shown(record(levelno=20))
  assert main._shown(record(levelno=30))
  assert not main._shown(record(levelno=40, exc_info=raised))
  assert main._shown(record(levelno=40, exc_info=raised, pathname="jaxunlearn/main.py"))


def test_what_threads_fail_with_is_one_line(monkeypatch):
  said = []
  log = lambda level, text, n, *args: said.append((n, text % args))
  monkeypatch.setattr(logging, "log_first_n", log)
  monkeypatch.setattr(threading, "excepthook", main._in_a_thread)

  def close():
    raise RuntimeError("Event loop is closed")

  thread = threading.Thread(target=close)
  thread.start()
  thread.join()
  assert said == [(1, "in a thread: Event loop is closed")]
