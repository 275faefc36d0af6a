"""Clear words for bad input: the value, the rule and the nearest choice."""

import contextlib
import dataclasses
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

BAD_INPUT, DIVERGED, PROCESS_LOST, QUIT = 2, 3, 5, 130  # exit codes; 4 is cdm.verify's


def advised(error: Exception) -> str:
  """What the user reads of an error: what the system refused has no next step of its own."""
  if not isinstance(error, OSError):
    return one_line(str(error))
  full = error.errno in (errno.ENOSPC, errno.EDQUOT)
  return one_line(f"{error}; {'free space' if full else 'put that right'} and launch again")


def one_line(text: str, longest: int = 1000) -> str:
  """The text without line breaks, cut in the middle where it is longer."""
  text = " ".join(text.splitlines())
  text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
  half = longest // 2
  return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


@contextlib.contextmanager
def of_system(path: os.PathLike[str]) -> Iterator[None]:
  """Raises tensorstore's ValueErrors of a disk as the OSErrors that they are."""
  try:
    yield
  except ValueError as error:
    if not (found := re.search(r"os_error_code='(\d+)'", str(error))):
      raise
    raise OSError(int(found[1]), os.strerror(int(found[1])), os.fspath(path)) from error


def nearest(name: str, choices: Iterable[str]) -> str:
  """` (did you mean 'siss'?)`, or nothing where no choice is near."""
  near = difflib.get_close_matches(name, list(choices), n=1)
  return f" (did you mean {near[0]!r}?)" if near else ""


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
  """Raises ValueError with the choices where `name` is none of them."""
  choices = list(choices)
  if name not in choices:
    hint = nearest(name, choices)
    raise ValueError(f"no {kind} {name!r}{hint}; there are: {', '.join(choices) or 'none'}")


def build(cls: Any, what: str, fields: Mapping[str, Any]) -> Any:
  """`cls(**fields)` for a dataclass, with a clear ValueError for a field it does not have."""
  known = [f.name for f in dataclasses.fields(cls) if f.init]
  for name in fields:
    if name not in known:
      raise ValueError(
        f"{what} has no field {name!r}{nearest(name, known)}; it has: {', '.join(known) or 'none'}"
      )
  return cls(**fields)
