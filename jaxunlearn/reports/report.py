"""The report of a run: results.json, a sentence on the terminal, one self-contained HTML page.

Everything is read from the working directory, so that a report can be written again later. Phases
are whatever evals/*.json holds: before and after first, then for instance those of attacks. What
stands on the page is made in subject.py (what was run), verdict.py, evidence.py, rows.py (the
table) and limits.py (what is not proven).
"""

import base64
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from jaxunlearn.reports import charts, evidence, limits, names, rows, subject, verdict, writer
from jaxunlearn.reports.rows import Results

TEMPLATES = pathlib.Path(__file__).parent / "templates"
WIDE = 3  # more phases than these are rows of the table, not columns


def write(workdir: pathlib.Path) -> Results:
  """Writes results.json and report.html into a run's folder, prints its end, returns the phases.

  results.json has, besides the phases, the `evidence` of a run that deleted something.
  """
  workdir = pathlib.Path(workdir)
  results = read_results(workdir / "evals")
  config, metrics = _read(workdir / "config.json"), writer.read(workdir / "metrics.jsonl")
  found = evidence.as_data(evidence.evidence(config, results, metrics))
  written = {**results, **({"evidence": found} if found else {})}
  writer.replace(workdir / "results.json", json.dumps(written, indent=2, allow_nan=False) + "\n")
  html = page(
    config,
    metrics,
    results,
    {path.stem: data_uri(path) for path in sorted((workdir / "samples").glob("*.png"))},
    _read(workdir / "compartments.json"),
    {
      path.parent.name: writer.read(path) for path in sorted(workdir.glob("shards/*/metrics.jsonl"))
    },
  )
  writer.replace(workdir / "report.html", html)
  print(f"{headline(results, config, metrics)}\nreport: {workdir / 'report.html'}")
  return results


def headline(
  results: Results, config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]] = ()
) -> str:
  """A run in one sentence: `T-shirt 3.1% -> 0% (under 0.74%), inception score -3%`.

  Args:
    metrics: the lines of metrics.jsonl, where an attack's probes are.
  """
  return verdict.headline(config, results, metrics)


def read_results(folder: pathlib.Path) -> Results:
  """The phases in order; NaN and infinity are strings, as in metrics.jsonl."""
  order = {"before": 0, "after": 1}
  words = lambda name: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", name)]
  paths = sorted(folder.glob("*.json"), key=lambda p: (order.get(p.stem, 2), words(p.stem)))
  return {path.stem: _strict(_phase(path)) for path in paths}


def _phase(path: pathlib.Path) -> Any:
  """What an evaluation wrote; raises ValueError where that is not what is there."""
  try:
    found = json.loads(path.read_text())
    for entry in found.values():
      float(entry["value"]), [float(end) for end in entry["ci95"] or ()], str(entry["identity"])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is damaged; delete it and launch again, to evaluate anew") from error
  return found


def page(
  config: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
  results: Results,
  pictures: Mapping[str, str],
  compartments: Mapping[str, Any] | None = None,
  sources: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> str:
  """The HTML page.

  Args:
    pictures: data URIs by name.
    compartments: what cdm/explain.py says.
    sources: of a compartmentalised model the metrics of each source.
  """
  results = dict(sorted(results.items(), key=lambda phase: phase[0].startswith("alone_")))
  table = [rows.row(name, results) for name in rows.metric_names(results)]
  told, folded = curves(metrics, attack=subject.kind(config) == "attack")
  told += losses(sources or {})
  said = verdict.verdict(config, results, metrics)
  found = evidence.evidence(config, results, metrics)
  both = [("Speaks for it", said.pro), ("Speaks against it", said.contra)]
  return render(
    "report.html.j2",
    title=subject.title(config, compartments),
    target=subject.target(config),
    facts=subject.facts(config, metrics, compartments),
    verdict=said,
    cards=evidence.cards(found) if found else both if said.pro or said.contra else [],
    phases={phase: names.phase(phase) for phase in results},
    wide=len(results) > WIDE,
    rows=table,
    identities=rows.identities(table),
    sections=sections(table),
    pictures=pictures,
    shown=shown(list(results), pictures, subject.target(config)),
    compartments=compartments,
    charts=told,
    folded=folded,
    limits=limits.limits(config, results),
    config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False),
  )


def sections(table: Sequence[rows.Row]) -> dict[tuple[str, str], dict[str, list[rows.Row]]]:
  """(heading, note) -> group -> its rows as bars."""
  out: dict[tuple[str, str], dict[str, list[rows.Row]]] = {}
  for group in rows.groups(table):
    members = rows.bars([row for row in table if row.group == group])
    out.setdefault(names.section(group), {})[group] = members
  return out


class Shown(NamedTuple):
  """A section of pictures."""

  title: str
  note: str
  pictures: tuple[tuple[str, str], ...]  # name, caption


def shown(phases: Sequence[str], pictures: Mapping[str, str], target: str) -> list[Shown]:
  """The grids of samples: those asked for what is to be forgotten, then the others."""
  there = lambda end: tuple((p + end, names.phase(p)) for p in phases if p + end in pictures)
  asked, others = there("_asked"), there("")
  if "probe_asked" in pictures and ("after_asked", "after") not in asked:
    asked += (("probe_asked", "on the way, the newest"),)
  same = (
    "From the same noise: a picture and the one at its place in another grid differ by the model "
    "alone."
  )
  near = (
    "Nearest by pixel distance, among the pictures of this run: those to delete and those kept."
  )
  parts = (
    Shown(f"Samples asked for {target}", same, asked),
    Shown("Samples of what is kept" if asked else "Samples", same, others),
    Shown(
      "Each sample, and at its right the training picture nearest to it", near, there("_pairs")
    ),
  )
  return [part for part in parts if part.pictures]


def losses(sources: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[charts.Chart]:
  """The loss of each source that has one."""
  found = {name: charts.curves(lines) for name, lines in sources.items()}
  return [charts.chart(f"loss of {n}", c["loss_x"]) for n, c in found.items() if "loss_x" in c]


def curves(
  metrics: Sequence[Mapping[str, Any]], attack: bool
) -> tuple[list[charts.Chart], list[charts.Chart]]:
  """The charts that tell most, an attack's AR first, and the others; named as readers know them."""
  told: list[charts.Chart] = []
  folded: list[charts.Chart] = []
  other = "probe_ua" if attack else "probe_ar"  # the same curve upside down
  order = lambda curve: attack and curve[0] != verdict.PROBE
  for name, points in sorted(charts.curves(metrics).items(), key=order):
    first = name.startswith(names.TOLD) and name != other
    (told if first else folded).append(charts.chart(names.log(name, attack), points))
  return told, folded


# Files.


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A file of JSON; {} where there is none."""
  return json.loads(path.read_text()) if path.exists() else {}


def _strict(tree: Any) -> Any:
  """NaN and infinity as strings, so that the text is strict JSON."""
  if isinstance(tree, dict):
    return {key: _strict(value) for key, value in tree.items()}
  if isinstance(tree, list):
    return [_strict(value) for value in tree]
  return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree


def render(template: str, **values: Any) -> str:
  """A page of templates/; all text is escaped by Jinja."""
  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return env.get_template(template).render(**values)


def data_uri(path: pathlib.Path) -> str:
  """A PNG within a page."""
  return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
