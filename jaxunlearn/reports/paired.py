"""Rows of a table beside one of its rows, seed by seed: what changed, with its interval.

    change = mean over seeds of value / value of the baseline - 1,  95% t-interval of that mean

A seed's noise, split and order of data are the same in both rows, so that the interval is of the
difference, narrower than those of the two rows where both move together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn import errors
from jaxunlearn.evals import statistics

SUFFIX = "_change"


def add(table: dict[str, dict[str, Any]], baseline: str) -> None:
  """METRIC_change to every row that has as many runs as the baseline, in place.

  Raises:
    ValueError: no row of that label.
  """
  errors.check_choice("row of config.paired", baseline, table)
  against = {name: _runs(entry) for name, entry in table[baseline].items()}
  for label, row in table.items():
    for name in [n for n in row if label != baseline and len(against.get(n, ())) > 0]:
      ours, theirs = _runs(row[name]), against[name]
      if len(ours) == len(theirs) and np.all(theirs != 0):
        change = ours / theirs - 1
        row[f"{name}{SUFFIX}"] = {
          "value": float(change.mean()),
          "ci95": statistics.mean_interval(change),
          "runs": change.tolist(),
          "identity": [f"baseline={baseline.replace(' ', '-')}"],
        }


def _runs(entry: Any) -> np.ndarray:
  """The finite values of a cell's runs; none of anything else."""
  if not isinstance(entry, Mapping) or not all(isinstance(v, float) for v in entry["runs"]):
    return np.empty(0)
  return np.array(entry["runs"])
