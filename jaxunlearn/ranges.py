"""Which numbers a field may have: `lam: ranges.Share = 0.5` is a number from 0 to 1.

The rule stands in the type, so that one walk checks every field of a dataclass, and one test tries
them all.
"""

import dataclasses
import math
import typing
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Range:
  """The finite numbers from `low` to `high`, both among them unless they are said to be open."""

  low: float = -math.inf
  high: float = math.inf
  above: bool = False  # more than low
  under: bool = False  # less than high
  whole: bool = False
  optional: bool = False  # None as well

  def holds(self, value: Any) -> bool:
    if value is None:
      return self.optional
    if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
      return False
    low = self.low < value if self.above else self.low <= value
    high = value < self.high if self.under else value <= self.high
    return low and high and math.isfinite(value)

  @property
  def rule(self) -> str:
    """In words: `0 or more`, `more than 0, to 1`, `a whole number, 1 or more`."""
    if self.high == math.inf:
      text = f"more than {self.low:g}" if self.above else f"{self.low:g} or more"
    else:
      text = f"more than {self.low:g}, to" if self.above else f"{self.low:g} to"
      text += f" under {self.high:g}" if self.under else f" {self.high:g}"
    return ("a whole number, " if self.whole else "") + text + (", or None" * self.optional)


AtLeast0 = Annotated[float, Range(0.0)]
Above0 = Annotated[float, Range(0.0, above=True)]
Share = Annotated[float, Range(0.0, 1.0)]  # a probability, a weight between two
Part = Annotated[float, Range(0.0, 1.0, above=True)]  # some of a whole, or all of it
Count = Annotated[int, Range(1.0, whole=True)]


def of_fields(cls: type) -> dict[str, Range]:
  """The ranges that stand in the types of a dataclass; `Above0 | None` may be None as well."""
  hints = typing.get_type_hints(cls, include_extras=True)
  names = [field.name for field in dataclasses.fields(cls)]
  found = {name: _range(hints[name]) for name in names if name in hints}
  return {name: one for name, one in found.items() if one}


def check(values: Any) -> None:
  """Raises ValueError for the first field of a dataclass that is outside its range."""
  for name, one in of_fields(type(values)).items():
    check_one(name, getattr(values, name), one)


def check_one(name: str, value: Any, one: Range) -> None:
  """Raises ValueError with field, value and rule, unless the range holds the value."""
  if not one.holds(value):
    raise ValueError(f"{name} is {value}; use {one.rule}")


def _range(hint: Any) -> Range | None:
  """The range in a type, or in a union of it with None."""
  parts = (hint, *typing.get_args(hint))
  marks = [mark for part in parts for mark in getattr(part, "__metadata__", ())]
  one = next((mark for mark in marks if isinstance(mark, Range)), None)
  return dataclasses.replace(one, optional=True) if one and type(None) in parts else one
