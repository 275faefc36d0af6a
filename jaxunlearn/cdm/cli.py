"""What the commands on a compartmentalised run share: exit codes, and errors in one line."""

import sys
from collections.abc import Callable

from absl import logging

from jaxunlearn import checkpoint, errors, train


def guarded(command: Callable[[], None]) -> int:
  """The exit code of a command, as those of jaxunlearn.main; 1 where a proof fails."""
  logging.set_verbosity(logging.WARNING)
  try:
    command()
  except (ValueError, checkpoint.Damaged) as error:
    return _say(error, errors.BAD_INPUT)
  except train.Diverged as error:
    return _say(error, errors.DIVERGED)
  except RuntimeError as error:
    return _say(error, 1)
  return 0


def _say(error: Exception, code: int) -> int:
  print(f"error: {error}", file=sys.stderr)
  return code
