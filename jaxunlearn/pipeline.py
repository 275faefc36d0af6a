"""A pipeline is a config that lists runs, and the table of their results.

    config.runs   name -> the config of a run; a finished run is skipped when launched again
    config.rows   label -> the names of its runs, one a seed
    config.columns, config.published, config.out   what the table shows, and where it goes
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from jaxunlearn import train
from jaxunlearn.evals import statistics


def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Every run in turn under workdir/NAME, then the table; returns its numbers.

  A run that diverges is recorded as such, and the next one starts.
  """
  workdir = pathlib.Path(workdir)
  jax.config.update("jax_compilation_cache_dir", str((workdir / "xla_cache").absolute()))
  for i, (name, sub) in enumerate(sorted(config.runs.items()), start=1):
    if _outcome(workdir / name) is not None:
      logging.info("run %d of %d, %s, is finished; skipped", i, len(config.runs), name)
      continue
    logging.info("run %d of %d: %s", i, len(config.runs), name)
    try:
      train.run(sub, workdir / name)
    except train.Diverged as error:
      logging.error("%s: %s", name, error)
      (workdir / name / "diverged.json").write_text(json.dumps({"diverged": str(error)}) + "\n")
  results = summarise(config, workdir)
  out = pathlib.Path(config.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
  out.with_suffix(".md").write_text(markdown(config, results))
  print(markdown(config, results))
  return results


def summarise(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """label -> metric -> mean over the runs, its 95% t-interval, each run's value, the identity."""
  table: dict[str, Any] = {}
  for label, names in config.rows.items():
    outcomes = [_outcome(workdir / name) for name in names]
    diverged = [o["diverged"] for o in outcomes if o and "diverged" in o]
    finished = [o["after"] for o in outcomes if o and "after" in o]
    steps = config.runs[names[0]].train.steps
    row: dict[str, Any] = {"steps": steps, "runs": len(finished), "diverged": diverged}
    for metric in finished[0] if finished else ():
      values = [float(outcome[metric]["value"]) for outcome in finished]
      mean, interval = statistics.mean_interval(values)
      identities = sorted({outcome[metric]["identity"] for outcome in finished})
      row[metric] = {"value": mean, "ci95": interval, "runs": values, "identity": identities}
    table[label] = row
  return table


def markdown(config: ConfigDict, results: Mapping[str, Any]) -> str:
  """The table: one row a label, `mean ± half-width`, and the published numbers beside it."""
  columns, published = config.columns, config.get("published", ConfigDict())
  head = ["", "steps", *columns.values(), *(f"paper: {name}" for name in published.get("head", ()))]
  lines = [_row(head), _row(["---"] * len(head))]
  for label, row in results.items():
    cells = [_cell(row.get(metric)) for metric in columns]
    if row["diverged"]:
      cells[0] += f" ({len(row['diverged'])} diverged)"
    lines.append(_row([label, str(row["steps"]), *cells, *published.get(label, ())]))
  return "\n".join(lines) + "\n"


def _outcome(run_dir: pathlib.Path) -> dict[str, Any] | None:
  """What a finished run left; None where it is not finished."""
  for name in ("results.json", "diverged.json"):
    if (run_dir / name).exists():
      outcome = json.loads((run_dir / name).read_text())
      return outcome if name == "diverged.json" or "after" in outcome else None
  return None


def _cell(entry: Mapping[str, Any] | None) -> str:
  if entry is None:
    return "-"
  if entry["ci95"] is None:
    return f"{entry['value']:.3g}"
  half = (entry["ci95"][1] - entry["ci95"][0]) / 2
  return f"{entry['value']:.3g} ± {half:.2g}"


def _row(cells: Iterable[str]) -> str:
  return "| " + " | ".join(cells) + " |"
