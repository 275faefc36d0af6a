"""Which numbers a field may have: `lam: ranges.Share = 0.5` is a number from 0 to 1.

The rule stands in the type, so that one walk checks every field of a dataclass, and one test tries
them all.
"""

import collections.abc
import dataclasses
import math
import reprlib
import sys
import typing
from collections.abc import Sequence
from typing import Annotated, Any

LARGEST = 2**31 - 1  # of an int32, which steps and sizes become on a device


@dataclasses.dataclass(frozen=True)
class Range:
  """The finite numbers from `low` to `high`, both among them unless they are said to be open."""

  low: float | int = -math.inf
  high: float | int = math.inf
  above: bool = False  # more than low
  under: bool = False  # less than high
  whole: bool = False
  optional: bool = False  # None as well
  besides: tuple[float | int, ...] = ()  # numbers outside that mean something: 0 for none
  many: bool = False  # a sequence of such numbers
  single: bool = True  # or one alone

  def holds(self, value: Any) -> bool:
    if value is None:
      return self.optional
    if isinstance(value, tuple | list):
      return self.many and all(map(self._holds_one, value))
    return self.single and self._holds_one(value)

  def _holds_one(self, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
      return False
    low = self.low < value if self.above else self.low <= value
    high = value < self.high if self.under else value <= self.high
    return (low and high and abs(value) <= sys.float_info.max) or value in self.besides

  @property
  def rule(self) -> str:
    """In words: `0 or more`, `more than 0, to 1`, `a whole number, 1 or more`."""
    low, high = f"{self.low:g}", f"{self.high:.10g}"
    if self.low == -math.inf:
      text = "a finite number"
    elif self.high in (math.inf, LARGEST):
      text = f"more than {low}" if self.above else f"{low} or more"
    else:
      text = f"more than {low}, to" if self.above else f"{low} to"
      text += f" under {high}" if self.under else f" {high}"
    text = ("whole numbers, " if self.many else "a whole number, ") * self.whole + text
    text += "".join(f", or {one:g}" for one in self.besides)
    return text + ", or None" * self.optional


AtLeast0 = Annotated[float | int, Range(0.0)]
Above0 = Annotated[float | int, Range(0.0, above=True)]
AtLeast1 = Annotated[float | int, Range(1.0)]
Share = Annotated[float | int, Range(0.0, 1.0)]  # a probability, a weight between two
Part = Annotated[float | int, Range(0.0, 1.0, above=True)]  # some of a whole, or all of it
Under1 = Annotated[float | int, Range(0.0, 1.0, under=True)]
Inside1 = Annotated[float | int, Range(0.0, 1.0, above=True, under=True)]
Count = Annotated[int, Range(1.0, LARGEST, whole=True)]
From0 = Annotated[int, Range(0.0, LARGEST, whole=True)]  # 0: none
Seed = Annotated[int, Range(0.0, 2**32 - 1, whole=True)]
Seeds = Sequence[Seed]
OneIn = Annotated[int, Range(2.0, LARGEST, whole=True)]  # one in so many


def of_fields(cls: type) -> dict[str, Range]:
  """The ranges that stand in the types of a dataclass; `Above0 | None` may be None as well."""
  hints = typing.get_type_hints(cls, include_extras=True)
  names = [field.name for field in dataclasses.fields(cls)]
  found = {name: of(hints[name]) for name in names if name in hints}
  return {name: one for name, one in found.items() if one}


def check(values: Any) -> None:
  """Raises ValueError for the first field of a dataclass that is outside its range."""
  for name, one in of_fields(type(values)).items():
    check_one(name, getattr(values, name), one)


def check_one(name: str, value: Any, one: Range) -> None:
  """Raises ValueError with field, value and rule, unless the range holds the value."""
  if one.holds(value):
    return
  large = isinstance(value, int | float) and LARGEST <= one.high < value < math.inf
  rule = f"at most {one.high:.10g}" if large else one.rule
  raise ValueError(f"{name} is {shown(value)}; use {rule}")


def shown(value: Any) -> str:
  """A value in one short line, whatever it is."""
  if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
    return f"{value:.0f}"  # as it was written: 0 of a field of 0.0
  try:
    return " ".join(_short.repr(value).split())
  except Exception:
    return f"a {type(value).__name__} that cannot be shown"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def of(hint: Any) -> Range | None:
  """The range in a type, or in a union with None, or in a sequence of such numbers."""
  parts = typing.get_args(hint) if not hasattr(hint, "__metadata__") else ()
  origin = typing.get_origin(hint)
  if origin in (tuple, collections.abc.Sequence):
    one = next(filter(None, map(of, parts)), None)
    return one and dataclasses.replace(one, many=True, single=False)
  if not parts:
    return next(
      (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Range)), None
    )
  found = [one for one in map(of, parts) if one]
  if not found:
    return None
  return dataclasses.replace(
    found[0],
    optional=type(None) in parts,
    many=any(one.many for one in found),
    single=any(one.single for one in found),
  )
