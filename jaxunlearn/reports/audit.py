"""What attacks bring back: the recovery curves of an unlearned model, their maxima, and the page.

An attack is a run of its own, named NAME@ATTACK after the run that it attacks. Its probes give
AR(step), the share of samples under the condition to forget that show it again; an attack with
several learning rates is several runs, NAME@ATTACK_RATE, and what counts is the largest AR over
rates and steps (Yuan et al., 2025, report AR at each step).
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxunlearn.reports import charts, report, subject, writer
from jaxunlearn.reports.charts import Chart
from jaxunlearn.reports.verdict import ENDS, PROBE, RECOVERED, Verdict

DISTANCE = "distance"  # as train.py logs it
CONTROL = "embedding_copy"

Attacks = Sequence[tuple[str, str, Sequence[str]]]  # metric, title, suffixes of the runs' names


def recovered(
  workdir: pathlib.Path, name: str, attacks: Attacks, after: Mapping[str, Any]
) -> dict[str, Any]:
  """The largest AR of each attack on a run, and (NAME_mean) the mean over all its probes.

  AR at step 0 is that of the unlearned model itself; only the largest counts it. NAME_distance is
  how far the attack with the largest AR went, ||theta_s - theta_0|| at its last probe.
  """
  out = {}
  for metric, _, suffixes in attacks:
    made = _made(workdir, name, suffixes)
    if not made:
      continue
    best = max(made, key=lambda s: made[s][:, 1].max())
    value = float(max(made[best][:, 1].max(), after["ar"]["value"]))
    probes = sum(len(c) for c in made.values())
    identity = f"attacks={','.join(made)} probes={probes} {after['ar']['identity']}"
    out[metric] = {"value": value, "ci95": None, "identity": identity, "best": best}
    mean = float(np.mean([c[:, 1].mean() for c in made.values()]))
    out[f"{metric}_mean"] = {"value": mean, "ci95": None, "identity": f"mean {identity}"}
    distance = curve(workdir / f"{name}@{best}", DISTANCE)
    if len(distance):
      step, value = distance[-1]
      identity = f"attack={best} step={step:g}"
      out[f"{metric}_distance"] = {"value": float(value), "ci95": None, "identity": identity}
  return out


def points(run: pathlib.Path) -> np.ndarray:
  """The AR of an attack at its probes; of one that trains nothing [0, AR], of its evaluation."""
  if len(found := curve(run)) or not (run / "results.json").exists():
    return found
  after = json.loads((run / "results.json").read_text()).get("after", {})
  ends = [after[name]["value"] for name in ENDS if name in after]
  return np.array([(0, float(value)) for value in ends[:1]]).reshape(-1, 2)


def curve(run: pathlib.Path, what: str = PROBE) -> np.ndarray:
  """[N, 2] steps and AR, or another metric, of the probes of an attack, those that are finite."""
  lines = [line for line in writer.read(run / "metrics.jsonl") if what in line]
  points = np.array([(line["step"], float(line[what])) for line in lines]).reshape(-1, 2)
  return points[np.isfinite(points[:, 1])]


def mean_curves(
  workdir: pathlib.Path, names: Sequence[str], attacks: Attacks
) -> dict[str, list[list[float]]]:
  """suffix -> [step, AR, lowest, highest] at each probe, over the attacked runs that got there."""
  out = {}
  for suffix in _titles(attacks):
    every = np.concatenate([points(workdir / f"{name}@{suffix}") for name in names])
    ar = {step: every[every[:, 0] == step, 1] for step in np.unique(every[:, 0])}
    if ar:
      rows = [(step, a.mean(), a.min(), a.max()) for step, a in ar.items()]
      out[suffix] = np.array(rows).round(4).tolist()
  return out


def _made(workdir: pathlib.Path, name: str, suffixes: Iterable[str]) -> dict[str, np.ndarray]:
  """suffix -> the curve of each attack that was made on a run."""
  curves = {suffix: points(workdir / f"{name}@{suffix}") for suffix in suffixes}
  return {suffix: c for suffix, c in curves.items() if len(c)}


# The page.


def write(config: ConfigDict, results: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes report.html into a pipeline's folder, self-contained; the first row is the base model.

  Args:
    config: has rows, columns, attacks and runs; see pipeline.py.
    results: of each row, as pipeline.summarise gives them.
  """
  names = [name for _, row, _ in config.rows for name in row]
  ends = [c[-1][0] for row in results.values() for c in row["curves"].values()]
  last = max(ends, default=0) or 1.0  # no attack may have a step
  said = verdict(config, results)
  cards = [("Stays unlearned", said.pro), ("Comes back, or may", said.contra)]
  html = report.render(
    "audit.html.j2",
    concepts=list(_firsts(config, names)),
    base=_base(config),
    verdict=said,
    cards=cards if said.pro or said.contra else [],
    titles=[title for _, title in config.columns],
    rows=[(label, row, _cells(config, row)) for label, row in results.items()],
    threshold=RECOVERED,
    attacks=list(_titles(config.attacks).values()),
    panels=[(label, lines(row, config.attacks, last)) for label, row in results.items()],
    frame=Chart,
    x_ticks=_ticks(last, Chart.left, Chart.right),
    y_ticks=_ticks(1.0, Chart.bottom, Chart.top, most=2),
    grids=grids(config, workdir),
    identities=identities(config.columns, results),
    controls=_controls(config),
  )
  writer.replace(pathlib.Path(workdir) / "report.html", html)


def verdict(config: ConfigDict, results: Mapping[str, Any]) -> Verdict:
  """How many methods unlearn, and which of them stay so; controls and models as they are apart.

  An attack that brings it to a model which never saw it teaches it, and is not counted. A method
  stays where the intervals of its ARs end below RECOVERED.
  """
  rows = {
    label: results[label] for label, names, _ in config.rows if _is_method(config, label, names)
  }
  never = [results[label] for label, names, _ in config.rows if _never_saw(config, label, names)]
  attacks = {metric: title for metric, title, _ in config.attacks}
  taught = [m for m in attacks if any(_ends(row, m)[0] >= RECOVERED for row in never)]
  counted = [m for m in attacks if m not in taught]
  gone = {label: row for label, row in rows.items() if _ends(row, "ua")[0] >= RECOVERED}
  attacked = {label: row for label, row in gone.items() if counted and set(counted) & row.keys()}
  words, stay = {}, []
  for label, row in attacked.items():
    worst = max(counted, key=lambda m: _ends(row, m)[0])
    highest = max(_ends(row, m)[1] for m in counted)
    stay += [label] if highest < RECOVERED else []
    up_to = f", up to {highest:.2g} with its interval" if highest > _ends(row, worst)[0] else ""
    words[label] = f"{label}: AR {_ends(row, worst)[0]:.2g} at most ({attacks[worst]}){up_to}."
  line = f"{len(gone)} of {len(rows)} methods unlearn, with a UA of at least {RECOVERED}"
  if attacked:
    which = f"{len(stay)} of them ({', '.join(stay)})" if stay else "none of them"
    line += f"; {which} clearly stay{'s' if len(stay) < 2 else ''} below an AR of {RECOVERED}"
    line += " under the attacks that count" if taught else " under every attack here"
  note = (
    f"Not counted: {', '.join(attacks[m] for m in taught)}. Models that never saw it learn it too."
  )
  contra = (*(words[label] for label in words if label not in stay), *([note] if taught else ()))
  return Verdict(f"{line}.", tuple(words[label] for label in stay), contra)


def _ends(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
  """A value and the upper end of its interval; 0 where it is missing or not finite."""
  if metric not in row or not np.isfinite(value := float(row[metric]["value"])):
    return 0.0, 0.0
  return value, max(value, float((row[metric]["ci95"] or (0, 0))[1]))


def _kind(config: ConfigDict, names: Sequence[str]) -> str:
  return subject.kind(config.runs[names[0]].to_dict())


def _is_method(config: ConfigDict, label: str, names: Sequence[str]) -> bool:
  other = label.startswith(_base(config)) or label in _controls(config)
  changed = _kind(config, names) != "measuring" or label == config.get("audited")
  return changed and not other


def _never_saw(config: ConfigDict, label: str, names: Sequence[str]) -> bool:
  """Whether a row is a model as it is, other than the base."""
  known = label.startswith(_base(config)) or label == config.get("audited")
  return _kind(config, names) == "measuring" and not known


def _base(config: ConfigDict) -> str:
  """How the labels of the base model's rows begin: `pretrained`, or `pretrained: TARGET`."""
  return config.rows[0][0].partition(":")[0]


def _firsts(config: ConfigDict, names: Iterable[str]) -> dict[str, str]:
  """What is unlearned, in words -> the first of the runs that unlearns it."""
  out: dict[str, str] = {}
  for name in names:
    out.setdefault(_concept(config, name), name)
  return out


def _concept(config: ConfigDict, name: str) -> str:
  return subject.deleted(config.runs[name].to_dict())


def _titles(attacks: Attacks) -> dict[str, str]:
  """suffix -> the attack's title, with the learning rate where the attack is several runs."""
  return {
    suffix: f"{title}, rate {suffix.rpartition('_')[2]}" if len(suffixes) > 1 else title
    for _, title, suffixes in attacks
    for suffix in suffixes
  }


def _ticks(high: float, first: int, last: int, most: int = 5) -> charts.Ticks:
  place = charts.scale(0.0, high, first, last)
  return tuple((round(place(t), 1), charts.number(t)) for t in charts.ticks(0.0, high, most))


class Cell(NamedTuple):
  """A value of the table."""

  value: float | str
  text: str
  half: str  # half the width of the 95% interval; "" of a single run
  back: bool  # an attack brings the concept back


def _cells(config: ConfigDict, row: Mapping[str, Any]) -> list[Cell | None]:
  attacks = {metric for metric, *_ in config.attacks}
  entries = [(row.get(metric), metric in attacks) for metric, _ in config.columns]
  return [_cell(entry, attack) if entry else None for entry, attack in entries]


def _cell(entry: Mapping[str, Any], attack: bool) -> Cell:
  value, ci95 = entry["value"], entry["ci95"]
  half = f"± {_digits((ci95[1] - ci95[0]) / 2, 2)}" if ci95 else ""
  text = entry.get("words") or _digits(float(value), 3)
  return Cell(value, text, half, attack and float(value) >= RECOVERED)


def _digits(value: float, count: int) -> str:
  whole = 1000 <= abs(value) < 1e12
  return f"{value:,.0f}" if whole else f"{float(f'{value:.{count}g}'):g}"  # 820, not 8.2e+02


class Line(NamedTuple):
  """The mean curve of one attack on one row, in the units of its SVG."""

  number: int  # of the attack, for its colour and dashes
  title: str
  text: str  # its end, in words
  mean: str
  band: str  # from the lowest to the highest run


def lines(row: Mapping[str, Any], attacks: Attacks, last: float) -> list[Line]:
  """The curves of a row over steps 0 to `last`; at step 0 is the AR of the unlearned model."""
  x = charts.scale(0.0, last, Chart.left, Chart.right)
  y = charts.scale(0.0, 1.0, Chart.bottom, Chart.top)
  out = []
  for i, (suffix, title) in enumerate(_titles(attacks).items()):
    if suffix not in row["curves"]:
      continue
    start = np.array(row["ar"]["runs"], float)
    points = np.array([[0, start.mean(), start.min(), start.max()], *row["curves"][suffix]])
    step, ar, low, high = points[np.isfinite(points).all(1)].T
    join = lambda s, v: list(zip(x(s).round(1), y(v).round(1), strict=True))
    band = charts.path(join(step, low) + join(step, high)[::-1])
    text = f"{ar[-1]:.2g} at step {step[-1]:g}"
    out.append(Line(i, title, text, charts.path(join(step, ar)), band))
  return out


class Grids(NamedTuple):
  """Samples from the same noise under the condition to forget: captions and data URIs."""

  label: str
  concept: str
  pictures: tuple[tuple[str, str], ...]  # a missing one is ""


def grids(config: ConfigDict, workdir: pathlib.Path) -> list[Grids]:
  """Before, unlearned and attacked; of each row but the base's, the first run on each concept."""
  noise = lambda name: (_concept(config, name), config.runs[name].eval.seed)
  base = _base(config)
  bases = {
    noise(name): name for label, names, _ in config.rows if label.startswith(base) for name in names
  }
  out = []
  for label, names, _ in config.rows:
    if label.startswith(base):
      continue
    for concept, name in _firsts(config, names).items():
      attack, caption = _strongest(workdir, name, config.attacks)
      pictures = (
        (base, _picture(workdir, bases.get(noise(name), ""), "after")),
        (label, _picture(workdir, name, "after")),
        (caption, _attacked(workdir, f"{name}@{attack}")),
      )
      out.append(Grids(label, concept, pictures))
  return out


def _strongest(workdir: pathlib.Path, name: str, attacks: Attacks) -> tuple[str, str]:
  """The suffix of the attack on a run with the largest AR, at the end where several have it."""
  made = _made(workdir, name, _titles(attacks))
  if not made:
    return "", "attacked"
  best = max(made, key=lambda s: (made[s][:, 1].max(), made[s][-1, 1]))
  (step, ar), most = made[best][-1], made[best][:, 1].max()
  peak = f", at most {most:.2g}" if most > ar else ""
  return best, f"attacked, {_titles(attacks)[best]}: {ar:.2g} at step {step:g}{peak}"


def _attacked(workdir: pathlib.Path, run: str) -> str:
  """Of the newest probe, or of the evaluation of an attack that trains nothing."""
  return _picture(workdir, run, "probe") or _picture(workdir, run, "after")


def _picture(workdir: pathlib.Path, run: str, phase: str) -> str:
  path = pathlib.Path(workdir) / run / "samples" / f"{phase}_asked.png"
  return report.data_uri(path) if path.exists() else ""


def identities(
  columns: Sequence[tuple[str, str]], results: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
  """Of each column its title, its identity over all rows, and what of that the rows differ in."""
  out = []
  for metric, title in columns:
    rows = [_facts(row[metric]["identity"]) for row in results.values() if metric in row]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    apart = [key for key in keys if len({tuple(row.get(key, ())) for row in rows}) > 1]
    values = {key: dict.fromkeys(v for row in rows for v in row.get(key, ())) for key in keys}
    merged = " ".join(key + "|".join(values[key]) for key in keys)
    out.append((title, merged, ", ".join(key.removesuffix("=") for key in apart)))
  return out


def _facts(identities: Iterable[str]) -> dict[str, list[str]]:
  """`key=` -> the values it has in any of the identities, sorted; of a bare word none but ""."""
  out: dict[str, set[str]] = {}
  for word in (word for identity in identities for word in identity.split()):
    key, equals, value = word.partition("=")
    out.setdefault(key + equals, set()).add(value)
  return {key: sorted(values) for key, values in out.items()}


def _controls(config: ConfigDict) -> list[str]:
  """The rows that are the trivial control, embedding_copy."""
  method = lambda names: config.runs[names[0]].get("method", {}).get("name", "")
  return [label for label, names, _ in config.rows if method(names) == CONTROL]
