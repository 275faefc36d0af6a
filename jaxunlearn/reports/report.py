"""The report of a run: results.json, a table on the terminal and one self-contained HTML page.

Everything is read from the working directory, so that a report can be written again later. Phases
are whatever evals/*.json holds: before and after first, then for instance those of attacks.
"""

import base64
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from jaxunlearn import data
from jaxunlearn.reports import charts, headline, writer
from jaxunlearn.reports.charts import number

Results = dict[str, dict[str, dict[str, Any]]]  # phase -> metric -> value, ci95, identity

# How to read a metric, by the end of its name.
TEMPLATES = pathlib.Path(__file__).parent / "templates"
MEANING = {
  "ua": "share of samples asked for what is unlearned that no longer show it: 1 is forgotten",
  "ar": "1 - ua, attack recovery: the share that shows it again",
  "worst_ira": "accuracy of the worst kept condition: should stay",
  "ira": "share of the kept samples that show what they were asked for: should stay",
  "cra": "the same of the other condition: should stay",
  "retain_grad_norm": "slope of the retain loss: what relearning starts from",
  "retain_loss": "denoising loss on what is kept: should not rise",
  "_rate": "share of samples that are the target: 0 is forgotten",
  "inception_score": "quality and variety of what is kept: should stay",
  "feature_fid": "distance of what is kept to the reference images: should not rise",
  "fid": "distance of what is kept to the reference images: should not rise",
  "sscd": "how like the target its restoration is, by SSCD: falls when forgotten",
  "nll_bpd": "surprise at the target, bits per dimension: rises when forgotten",
  "copy_score": "how well the noised target is restored: falls when forgotten",
  "worst_class_share": "share of the rarest kept class: 0 is a class lost",
  "class_share": "share of the kept samples in each class",
  "class_confidence": "mean certainty of the classifier about each class",
}


def write(workdir: pathlib.Path) -> Results:
  """Writes results.json and report.html into a run's folder, says so, returns results."""
  workdir = pathlib.Path(workdir)
  results = read_results(workdir / "evals")
  writer.replace(workdir / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
  config, sources = workdir / "config.json", workdir / "compartments.json"
  html = page(
    json.loads(config.read_text()) if config.exists() else {},
    writer.read(workdir / "metrics.jsonl"),
    results,
    {path.stem: data_uri(path) for path in sorted((workdir / "samples").glob("*.png"))},
    json.loads(sources.read_text()) if sources.exists() else {},
  )
  writer.replace(workdir / "report.html", html)
  print(headline.closing(results, workdir / "report.html"))
  return results


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


def table(results: Results) -> str:
  """Plain text: a row a metric; for each phase its value and [interval]."""
  rows = [["metric", *results]]
  for name in metric_names(results):
    rows.append([name, *(_cell(phase.get(name)) for phase in results.values())])
  width = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip() for row in rows
  )


def metric_names(results: Results) -> list[str]:
  """Every metric of any phase, in the order of evaluation."""
  return list(dict.fromkeys(name for phase in results.values() for name in phase))


def page(
  config: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
  results: Results,
  pictures: Mapping[str, str],
  compartments: Mapping[str, Any] | None = None,
) -> str:
  """The HTML page; `pictures` are data URIs by name, `compartments` those of cdm/explain.py."""
  rows = [row(name, results) for name in metric_names(results)]
  return render(
    "report.html.j2",
    title=_title(config),
    facts=facts(config, metrics) | _of_sources(config, compartments or {}),
    phases=list(results),
    rows=rows,
    identities=identities(rows),
    groups={group: bars([r for r in rows if r.group == group]) for group in groups(rows)},
    pictures=pictures,
    compartments=compartments,
    charts=[charts.chart(name, points) for name, points in charts.curves(metrics).items()],
    caveats=caveats(config, results),
    config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False),
  )


# The header.


def _title(config: Mapping[str, Any]) -> str:
  if "sources" in config:
    return "Compartments"
  return f"Deleting {deleted(config)}" if deleted(config) else "Training run"


def deleted(config: Mapping[str, Any]) -> str:
  """What config.forget selects, in words; "" for nothing."""
  forget = config.get("forget", {})
  if forget.get("label"):
    return f"the class {forget['label']}"
  if forget.get("style"):
    return f"the style {forget['style']}"
  if forget.get("file"):
    return f"the records listed in {forget['file']}"
  ids = [str(name) for name in forget.get("ids") or ()]
  count = lambda noun: f"{len(ids)} {noun}{'s' * (len(ids) > 1)}"
  digests = all(name.startswith(data.SHA256) for name in ids)
  what = f"every copy of {count('file')}" if digests else count("record")
  shown = ", ".join(map(_short, ids[:3])) + (", …" if len(ids) > 3 else "")
  return f"{what} ({shown})" if ids else ""


def _short(name: str) -> str:
  """A digest by its first digits."""
  digits = len(data.SHA256) + 12
  return f"{name[:digits]}…" if name.startswith(data.SHA256) and len(name) > digits else name


def facts(config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The header's lines: what was run on what, from where."""
  train = config.get("train", {})
  done = max((line["step"] for line in metrics), default=0)
  return {
    "Method": _named(config.get("method", {}), "name") or "not recorded",
    "Deleted": deleted(config) or "nothing",
    "Steps": f"{done} of {train.get('steps', 'unknown')}, batch {train.get('batch', 'unknown')}",
    "Started from": config.get("init_from") or "random parameters",
    "Data": _named(config.get("data", {}), "source") or "not recorded",
    "Seed": str(config.get("seed", "not recorded")),
  }


def _of_sources(config: Mapping[str, Any], compartments: Mapping[str, Any]) -> dict[str, str]:
  """The lines that are others where each source was trained by itself."""
  if "sources" not in config:
    return {}
  train, kind = config["train"], config["compartment"]["name"]
  return {
    "Method": f"{_named(config['method'], 'name')}, {kind} for each of "
    f"{len(compartments.get('sources', {}))} sources",
    "Deleted": "; ".join(compartments.get("deleted", ())) or "nothing",
    "Steps": f"{train['steps']} of each source, batch {train['batch']}",
  }


def _named(section: Mapping[str, Any], key: str) -> str:
  """`siss (lam=0.5)` from {"name": "siss", "lam": 0.5}."""
  fields = ", ".join(f"{k}={v}" for k, v in section.items() if k != key)
  return str(section.get(key, "")) + (f" ({fields})" if fields else "")


# The table.


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
    return "" if self.entry["ci95"] is None else _interval(self.entry["ci95"])


@dataclasses.dataclass(frozen=True)
class Row:
  """A metric in every phase that has it."""

  name: str
  cells: tuple[Cell | None, ...]

  @property
  def group(self) -> str:
    """`class_share` of `class_share/7`; "" of a metric that stands alone."""
    return self.name.rpartition("/")[0]

  @property
  def item(self) -> str:
    return self.name.rpartition("/")[2]

  @property
  def meaning(self) -> str:
    name = self.group or self.name
    return next((text for end, text in MEANING.items() if name.endswith(end)), "")

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
    facts = [_pairs(identity) for identity in self.identities]
    keys = sorted({key for fact in facts for key in fact})
    apart = [key for key in keys if len({fact.get(key) for fact in facts}) > 1]
    return ", ".join(apart) or ("identity" if len(facts) > 1 else "")


def row(name: str, results: Results) -> Row:
  entries = [phase.get(name) for phase in results.values()]
  places = [_numbers(entry) for entry in entries if entry]
  finite = [v for place in places for v in place if math.isfinite(v)]
  low, high = min(finite, default=0.0), max(finite, default=0.0)
  cell = lambda phase, entry: Cell(phase, entry, _places(_numbers(entry), low, high))
  pairs = zip(results, entries, strict=True)
  return Row(name, tuple(cell(phase, entry) if entry else None for phase, entry in pairs))


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


def _numbers(entry: Mapping[str, Any]) -> tuple[float, ...]:
  return tuple(map(float, (entry["value"], *(entry["ci95"] or ()))))


def _places(values: Iterable[float], low: float, high: float) -> tuple[float, ...] | None:
  at = tuple(100 * (v - low) / ((high - low) or 1) for v in values)
  return at if all(map(math.isfinite, at)) else None


def _interval(ci95: Sequence[float | str]) -> str:
  return f"[{number(ci95[0])}, {number(ci95[1])}]"


def _cell(entry: Mapping[str, Any] | None) -> str:
  if entry is None:
    return "-"
  return number(entry["value"]) + (f" {_interval(entry['ci95'])}" if entry["ci95"] else "")


# What is not proven.


def caveats(config: Mapping[str, Any], results: Results) -> list[str]:
  """What the numbers do not show, from the numbers."""
  entries = [(p, name, e) for p, phase in results.items() for name, e in phase.items()]
  pairs = [_pairs(e["identity"]) for _, _, e in entries]
  collect = lambda key: sorted({p[key] for p in pairs if key in p})
  rows = [row(name, results) for name in metric_names(results)]
  out = []
  for phase in ("before", "after"):
    if phase not in results and "sources" not in config:
      out.append(f"There is no evaluation {phase}: nothing here says what the run changed.")
  if any(e["ci95"] for _, _, e in entries):
    out.append(
      "The intervals are sampling error alone: how far a value may be off because this one model "
      f"(training seed {config.get('seed', 'not recorded')}) was measured on finitely many samples "
      "or probes. Another seed gives another model, and that spread is not in them."
    )
  for phase, name, entry in entries:
    if name.endswith("_rate") and entry["value"] == 0 and entry["ci95"]:
      n = _pairs(entry["identity"]).get("n")
      out.append(
        f"{name} {phase} is 0{f' of {n} samples' if n else ''}. That bounds the rate by "
        f"{float(entry['ci95'][1]):.2%}, the upper end of its Wilson interval, not by 0."
      )
  if "sources" in config:
    out.append(
      "A source that is deleted goes exactly: its network, and its part of a router that each has "
      "to itself. What the sources have in common stays: pictures that are in two of them, and "
      "the backbone, which is of the public set. The average of sources (naive) has the form that "
      "copy protection takes; an ordinary sampler of it certifies no bound."
    )
  elif results.keys() - {"before", "after"}:
    others = ", ".join(p for p in results if p not in ("before", "after"))
    out.append(f"The only attacks or later phases evaluated are: {others}. Others were not run.")
  elif deleted(config):
    out.append(
      "A relearning attack was not run: a few steps of training on the deleted or on similar "
      "images may bring them back."
    )
  if deleted(config) and config.get("init_from") and config.get("train", {}).get("steps"):
    out.append(
      "The weights were fine-tuned, not retrained without the data. What they still hold of it "
      "in a form that no metric here reads is not known."
    )
  if entries:
    how = "; ".join(f"{k} {', '.join(collect(k))}" for k in ("n", "sampler", "steps") if collect(k))
    out.append(
      "Behaviour elsewhere may have changed: other samplers, more samples, and everything that no "
      f"row of the table looks at{f' (measured with {how})' if how else ''}."
    )
  seen_by: dict[str, list[str]] = {}
  for r in rows:
    for identity in r.identities:
      seen_by.setdefault(_pairs(identity).get("extractor", ""), []).append(r.group or r.name)
  for extractor, names in seen_by.items():
    listed = ", ".join(dict.fromkeys(names))
    if extractor == "pixels":
      out.append(f"{listed}: judged by pixels. A shifted or restyled copy of the target may pass.")
    elif extractor:
      out.append(
        f"{listed}: judged by a small classifier of this project ({extractor}), whose errors are "
        "in the values. They do not compare with published values, which were made with another."
      )
  apart = [f"{r.name} ({r.differs})" for r in rows if r.differs]
  if apart:
    out.append(f"Measured differently between phases, so not comparable: {', '.join(apart)}.")
  return out


def _pairs(identity: str) -> dict[str, str]:
  return dict(pair.split("=", 1) for pair in identity.split() if "=" in pair)


# Files.


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
