"""One table of several audits: the results files of pipelines, as a page with filters and Markdown.

    jaxunlearn leaderboard results/audit_emoji.json other/audit.json --out=leaderboard

Rows are sorted by the largest AR of any attack, the lowest first, and at equal ARs by what is kept.
Values are comparable where they were measured alike: each row tells its classifier, and the page
can be filtered by it, by what is unlearned, and by what is kept. The module is
`python -m jaxunlearn.leaderboard`.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.commands import guard
from jaxunlearn.reports import report, writer

FIRST = ("ua", "ira", "cra", "worst_ira")
TITLES = {"ua": "UA", "ira": "IRA", "cra": "CRA", "worst_ira": "worst kept", "seconds": "seconds"}
LARGEST = "largest AR"
KEPT, LEAST = ("ira", "cra"), (0, 0.6, 0.7, 0.8, 0.9)  # what is kept; what the page can ask for
_AR = re.compile(r"ar_(?!.*_(mean|distance)$)\w+$")


class Entry(NamedTuple):
  """A row of an audit."""

  source: str  # the name of its file
  label: str
  steps: int
  values: Mapping[str, float]
  judge: str  # the classifier that told what samples show

  @property
  def largest(self) -> float | None:
    """The AR of the attack that brings back most."""
    found = [value for name, value in self.values.items() if _AR.match(name)]
    return max(found, default=None)

  @property
  def kept(self) -> float:
    """The lower accuracy of what is kept; 0 of a row that does not tell it."""
    return min((self.values[name] for name in KEPT if name in self.values), default=0.0)


def read(path: pathlib.Path) -> list[Entry]:
  """The rows of a results file; raises ValueError where it is none."""
  try:
    table = json.loads(path.read_text(encoding="utf-8"))
    return [_entry(path.stem, label, row) for label, row in table.items()]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{path} is no results file of an audit ({error!r}); give the .json beside its table"
    ) from error


def _entry(source: str, label: str, row: Mapping[str, Any]) -> Entry:
  cells = {k: v for k, v in row.items() if isinstance(v, dict) and "identity" in v and "value" in v}
  values = {name: float(cell["value"]) for name, cell in cells.items() if "words" not in cell}
  told = re.search(r"extractor=(\S+)", str(cells.get("ua", {}).get("identity", "")))
  judge = told[1].strip("'],") if told else "unknown"
  return Entry(source, label, int(row["steps"]), _finite(values), judge)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
  return {name: value for name, value in values.items() if np.isfinite(value)}


def ordered(entries: Sequence[Entry]) -> list[Entry]:
  """The lowest AR first, rows without an attack last; then by the worst that is kept."""
  rank = lambda e: (e.largest is None, e.largest or 0.0, -e.values.get("worst_ira", 0.0))
  return sorted(entries, key=rank)


def columns(entries: Sequence[Entry]) -> list[str]:
  """The metrics that any row has: accuracies, then attacks, then seconds."""
  there = {name for entry in entries for name in entry.values}
  first = [name for name in FIRST if name in there]
  attacks = sorted(name for name in there if _AR.match(name))
  return [*first, *attacks, *(["seconds"] if "seconds" in there else [])]


def title(metric: str) -> str:
  return TITLES.get(metric) or metric.replace("ar_", "AR ").replace("_", " ")


def cell(value: float | None) -> str:
  return "-" if value is None else f"{value:.3g}"


def markdown(entries: Sequence[Entry]) -> str:
  """The table as Markdown."""
  names = columns(entries)
  head = ["", "audit", LARGEST, *map(title, names), "steps", "judged by"]
  rows = [
    [
      *(entry.label, entry.source, cell(entry.largest)),
      *(cell(entry.values.get(name)) for name in names),
      *(str(entry.steps), entry.judge),
    ]
    for entry in ordered(entries)
  ]
  lines = [head, ["---"] * len(head), *rows]
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def page(entries: Sequence[Entry]) -> str:
  """The table as a page of its own, in which audits, judges, rows and columns can be hidden."""
  names = columns(entries)
  sources = list(dict.fromkeys(entry.source for entry in entries))
  judges = list(dict.fromkeys(entry.judge for entry in entries))
  asked = {
    "u": f"Unlearned, {title('ua')}",
    "k": f"Kept accuracy, the lower of {' and '.join(map(title, KEPT))}",
  }
  return report.render(
    "leaderboard.html.j2",
    largest=LARGEST,
    columns=[title(name) for name in names],
    sources=sources,
    judges=judges,
    asked=asked,
    least=LEAST,
    rows=[
      {
        "entry": entry,
        "source": sources.index(entry.source),
        "judge": judges.index(entry.judge),
        "below": [f"{letter}{i}" for letter, i in _below(entry)],
        "largest": cell(entry.largest),
        "cells": [cell(entry.values.get(name)) for name in names],
      }
      for entry in ordered(entries)
    ],
  )


def _below(entry: Entry) -> list[tuple[str, int]]:
  """(filter, place in LEAST) of what the row has not reached."""
  reached = {"u": entry.values.get("ua", 0.0), "k": entry.kept}
  places = range(len(LEAST))
  return [(letter, i) for letter, value in reached.items() for i in places if value < LEAST[i]]


def make(paths: Sequence[pathlib.Path], out: pathlib.Path) -> None:
  """Writes OUT.html and OUT.md; raises ValueError where a file is no results file."""
  entries = [entry for path in paths for entry in read(path)]
  out.parent.mkdir(parents=True, exist_ok=True)
  writer.replace(out.with_suffix(".html"), page(entries))
  writer.replace(out.with_suffix(".md"), text := markdown(entries))
  print(text, end="")


def start() -> int:
  parser = argparse.ArgumentParser(description="One table of several audits.")
  parser.add_argument("results", nargs="+", type=pathlib.Path, help="results files, .json")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("leaderboard"))
  args = parser.parse_args()
  return guard.guarded(lambda: make(args.results, args.out))
