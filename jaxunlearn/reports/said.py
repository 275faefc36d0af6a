"""One sentence of evidence, and how it writes a value."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxunlearn.reports.charts import number

FOR, AGAINST, UNKNOWN = "for", "against", "unknown"


class Said(NamedTuple):
  """A sentence and what it comes from."""

  side: str  # FOR, AGAINST or UNKNOWN
  text: str
  metric: str
  identity: str = ""  # of the value; "" of what is no measurement


def valued(entry: Mapping[str, Any]) -> str:
  """`0.0312 [0.019, 0.05]`: the value with its 95% interval, where it has one."""
  ends = entry["ci95"]
  span = f" [{number(ends[0])}, {number(ends[1])}]" if ends else ""
  return number(entry["value"]) + span
