"""Whether deletions of memorised pictures succeeded: a column of a table over runs.

    success   no sample is the memorised picture at the end, and the quality was at least the least
              throughout: at every probe, and at the end (Alberti et al., 2025)
    gone      no sample is it at the end, whatever the quality (ReTrack, Shi et al., 2026)

Behind either `_original`: by the original prompt. config.success says of which metrics:

    {"rate": "memorised_kmeans", "quality": "clip_iqa", "least": .35}

A row's value is the share of its runs, with Wilson's interval; a run that diverged failed.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxunlearn.evals import statistics
from jaxunlearn.reports import writer

COLUMNS = {"success": True, "gone": False}  # whether quality counts
ORIGINAL = "_original"


def is_column(name: str) -> bool:
  return name.removesuffix(ORIGINAL) in COLUMNS


def of_row(
  config: ConfigDict, workdir: pathlib.Path, names: Sequence[str], column: str
) -> dict[str, Any] | None:
  """The entry of a row in the table; None where none of its runs tells."""
  kind, end = column.removesuffix(ORIGINAL), ORIGINAL * column.endswith(ORIGINAL)
  rule = config.success.to_dict()
  found = [of_run(workdir / name, rule, end, COLUMNS[kind]) for name in names]
  told = [one for one in found if one is not None]
  if not told:
    return None
  hits, n = sum(told), len(told)
  how = f"interval=wilson rate={rule['rate']}{end}_rate=0"
  if COLUMNS[kind]:
    how += f" {rule['quality']}>={rule['least']:g}"
  return {
    "value": hits / n,
    "ci95": list(statistics.wilson(hits, n)),
    "runs": [float(one) for one in told],
    "words": f"{hits}/{n} ({_percent(statistics.wilson(hits, n))})",
    "identity": [how],
  }


def of_run(folder: pathlib.Path, rule: Mapping[str, Any], end: str, quality: bool) -> bool | None:
  """Whether a finished run succeeded; None where it did not measure that."""
  if (folder / "diverged.json").exists():
    return False
  after = json.loads((folder / "results.json").read_text())["after"]
  rate = after.get(f"{rule['rate']}{end}_rate")
  if rate is None:
    return None
  gone = rate["value"] == 0
  return gone and (not quality or all(q >= rule["least"] for q in qualities(folder, rule, after)))


def qualities(
  folder: pathlib.Path, rule: Mapping[str, Any], after: Mapping[str, Any]
) -> list[float]:
  """The quality at every probe and at the end."""
  name = rule["quality"]
  probes = [line.get(f"probe_{name}") for line in writer.read(folder / "metrics.jsonl")]
  values = [one for one in (*probes, after.get(name, {}).get("value")) if one is not None]
  if not values:
    raise ValueError(
      f"{folder} has no {name}, which config.success asks for; add it to the metrics"
    )
  return [float(one) for one in values]


def _percent(interval: tuple[float, float]) -> str:
  return f"{interval[0]:.0%} to {interval[1]:.0%}"
