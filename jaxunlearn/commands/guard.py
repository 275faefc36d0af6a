"""What commands in one process share: exit codes, and errors in one line."""

import os
import sys
from collections.abc import Callable

from absl import logging

from jaxunlearn import checkpoint, errors, train
from jaxunlearn.mesh import memory, processes


def guarded(command: Callable[[], None]) -> int:
  """The exit code of a command, as those of jaxunlearn.main; 1 where a proof fails."""
  logging.set_verbosity(logging.WARNING)
  memory.keep()
  try:
    if processes.launched(os.environ):
      raise ValueError(
        "this command runs in one process, and a launcher has started several; run it by itself, "
        "on a machine with as many devices as the training had"
      )
    command()
  except (ValueError, OSError, checkpoint.Damaged) as error:
    return _say(error, errors.BAD_INPUT)
  except train.Diverged as error:
    return _say(error, errors.DIVERGED)
  except RuntimeError as error:
    return _say(error, 1)
  return 0


def _say(error: Exception, code: int) -> int:
  print(f"error: {error}", file=sys.stderr)
  return code
