"""Clear words for bad input: the value, the rule and the nearest choice."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

BAD_INPUT, DIVERGED, PROCESS_LOST = 2, 3, 5  # exit codes; 4 is cdm.verify's


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
