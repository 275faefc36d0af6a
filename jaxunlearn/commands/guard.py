"""What commands share: exit codes, errors in one line, the devices of the run that they change."""

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import logging
from ml_collections import ConfigDict

from jaxunlearn import checkpoint, errors, train
from jaxunlearn.mesh import cores, memory, processes, programs
from jaxunlearn.weights import layout


def guarded(
  command: Callable[[], None], run: pathlib.Path | None = None, together: bool = False
) -> int:
  """The exit code of a command, as those of jaxunlearn.main; 1 where a proof fails.

  Args:
    run: what the command may train on: it has the devices that jaxunlearn.main gives that run.
    together: whether the command may be several processes of a launcher.
  """
  logging.set_verbosity(logging.WARNING)
  memory.keep()
  launched = processes.launched(os.environ)
  several = launched and together
  try:
    if launched and not together:
      raise ValueError(
        "this command runs in one process, and a launcher has started several; run it by itself, "
        "on a machine with as many devices as the training had"
      )
    processes.join()
    if run is not None:
      take_devices(run)
    command()
  except (ValueError, OSError, checkpoint.Damaged) as error:
    return _say(error, errors.BAD_INPUT, several)
  except train.Diverged as error:
    return _say(error, errors.DIVERGED, several)
  except RuntimeError as error:
    if several and isinstance(error, jax.errors.JaxRuntimeError):
      processes.fail(error)
    return _say(error, 1, several)
  return 0


def take_devices(run: pathlib.Path) -> None:
  """Those of the run's own training: other devices add up in another order, to other bits."""
  path = run / layout.CONFIG
  if path.is_file():
    cores.as_devices(*cores.rows_of(ConfigDict(layout.read_json(path))))
  programs.keep(run.parent / "xla_cache")


def _say(error: Exception, code: int, several: bool = False) -> int:
  print(f"error: {error}", file=sys.stderr)
  if several:
    processes.leave(code)
  return code
