"""Timing by turns: what is compared runs one after the other, again and again."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(run: Callable[[], Any]) -> float:
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
  """Median seconds of both and of the ratio between neighbours in time, and the ratio's range."""
  for run in (ours, theirs):
    run(), run()  # compiles, warms up; a step compiles again for what it returned
  both = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
  ratios = [a / b for a, b in both]
  return {
    "ours": statistics.median(a for a, _ in both),
    "pytorch": statistics.median(b for _, b in both),
    "ratio": statistics.median(ratios),
    "range": [min(ratios), max(ratios)],
  }
