"""The table of a report: each metric in every phase, its interval, and its place on an axis."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn.reports import charts, names
from jaxunlearn.reports.charts import number

Results = dict[str, dict[str, dict[str, Any]]]  # phase -> metric -> value, ci95, identity


def metric_names(results: Results) -> list[str]:
  """Every metric of any phase, in the order of evaluation."""
  return list(dict.fromkeys(name for phase in results.values() for name in phase))


@dataclasses.dataclass(frozen=True)
class Cell:
  """A value of one phase; `at` are the places of value, lo and hi in per cent of the row's span."""

  phase: str
  entry: Mapping[str, Any]
  at: tuple[float, ...] | None

  @property
  def text(self) -> str:
    return number(self.entry["value"])

  @property
  def interval(self) -> str:
    ends = self.entry["ci95"]
    return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""


@dataclasses.dataclass(frozen=True)
class Row:
  """A metric in every phase that has it."""

  name: str
  cells: tuple[Cell | None, ...]
  axis: charts.Ticks = ()  # the ends of the span, in per cent of it

  @property
  def group(self) -> str:
    """`class_share` of `class_share/7`; "" of a metric that stands alone."""
    return self.name.rpartition("/")[0]

  @property
  def item(self) -> str:
    return names.item(self.name.rpartition("/")[2])

  @property
  def title(self) -> str:
    """What a reader calls it."""
    return names.metric(self.name)

  @property
  def meaning(self) -> str:
    return names.meaning(self.name)

  @property
  def spread(self) -> bool:
    """Whether any of its values has an interval."""
    return any(cell and cell.entry["ci95"] for cell in self.cells)

  @property
  def identities(self) -> dict[str, list[str]]:
    """identity -> the phases measured so."""
    out: dict[str, list[str]] = {}
    for cell in filter(None, self.cells):
      out.setdefault(cell.entry["identity"], []).append(cell.phase)
    return out

  @property
  def differs(self) -> str:
    """What was measured differently between phases, which are then not comparable; else ""."""
    facts = [pairs_of(identity) for identity in self.identities]
    keys = sorted({key for fact in facts for key in fact})
    apart = [key for key in keys if len({fact.get(key) for fact in facts}) > 1]
    return ", ".join(apart) or ("identity" if len(facts) > 1 else "")


def row(name: str, results: Results) -> Row:
  entries = [phase.get(name) for phase in results.values()]
  places = [_numbers(entry) for entry in entries if entry]
  finite = [v for place in places for v in place if math.isfinite(v)]
  low, high = _round_span(finite)
  cell = lambda phase, entry: Cell(phase, entry, _places(_numbers(entry), low, high))
  pairs = zip(results, entries, strict=True)
  cells = tuple(cell(phase, entry) if entry else None for phase, entry in pairs)
  return Row(name, cells, ((0.0, number(low)), (100.0, number(high))) if finite else ())


def identities(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[str]]:
  """(phases, identity, what differs) -> the metrics, or groups of them, measured so."""
  out: dict[tuple[str, str, str], list[str]] = {}
  for r in rows:
    for identity, phases in r.identities.items():
      names = out.setdefault((", ".join(phases), identity, r.differs), [])
      names += [] if (r.group or r.name) in names else [r.group or r.name]
  return out


def groups(rows: Sequence[Row]) -> list[str]:
  return list(dict.fromkeys(row.group for row in rows if row.group))


def bars(rows: Sequence[Row]) -> list[Row]:
  """Rows whose places start at 0 and share one span, to be drawn as bars."""
  cells = [cell for row in rows for cell in row.cells if cell]
  finite = [v for cell in cells for v in _numbers(cell.entry) if math.isfinite(v)]
  high = max(finite, default=0.0)
  place = lambda c: c and dataclasses.replace(c, at=_places(_numbers(c.entry), 0.0, high))
  return [dataclasses.replace(row, cells=tuple(map(place, row.cells))) for row in rows]


def _round_span(values: Sequence[float]) -> tuple[float, float]:
  """Round numbers that hold the values between them."""
  low, high = charts.span(np.array(values))
  first, second, *_ = charts.ticks(low, high)
  step = second - first
  return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _numbers(entry: Mapping[str, Any]) -> tuple[float, ...]:
  return tuple(map(float, (entry["value"], *(entry["ci95"] or ()))))


def _places(values: Iterable[float], low: float, high: float) -> tuple[float, ...] | None:
  at = tuple(100 * (v - low) / ((high - low) or 1) for v in values)
  return at if all(map(math.isfinite, at)) else None


def pairs_of(identity: str) -> dict[str, str]:
  """The `key=value` words of an identity."""
  return dict(pair.split("=", 1) for pair in identity.split() if "=" in pair)
