"""What the terminal says of a run: one line before it, and one sentence of its results after it."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]

# Metric -> its name and unit; in the order in which they are said. A rate is NAME_rate.
FORGOTTEN = {"ua": ("unlearning accuracy", "%"), "copy_score": ("copy score", "")}
QUALITY = {
  "inception_score": ("inception score", "±"),
  "fid": ("FID", ""),
  "feature_fid": ("feature FID", ""),
  "ira": ("accuracy of kept classes", "%"),
  "nll_bpd": ("NLL", ""),
}
MOST = 3  # metrics of a sentence


def opening(
  config: Mapping[str, Any], deleted: str, records: int, devices: Sequence[Any], done: int = 0
) -> str:
  """`siss: delete the class b (63 records) from assets:x, 100 steps of 64 rows, on 1 x cpu`."""
  attack, origin = config.get("attack"), config.get("init_from")
  what = f"delete {deleted} ({plural(records, 'record')})" if deleted else "train"
  what = f"attack ({attack}) on {deleted or 'what is kept'}" if attack else what
  start = f" from {origin}" if origin else ", from random parameters" if not deleted else ""
  steps = f"{plural(config['train']['steps'], 'step')} of {config['train']['batch']} rows"
  again = f", going on after step {done}" if done else ""
  kind = getattr(devices[0], "device_kind", "device")
  return f"{config['method']['name']}: {what}{start}, {steps}{again}, on {len(devices)} x {kind}"


def closing(results: Results, report: pathlib.Path) -> str:
  """The sentence of the results, and where the page is."""
  return f"{sentence(results)}\nreport: {report}"


def sentence(results: Results) -> str:
  """`tshirt 3.1% -> 0%, inception score -3%`; of a single phase its values."""
  phases = [results[name] for name in ("before", "after") if name in results]
  phases = phases or list(results.values())[-1:]
  if not phases:
    return "Done; nothing was evaluated (config.eval.after)."
  rates = {name: (name.removesuffix("_rate"), "%") for name in phases[-1] if name.endswith("_rate")}
  told = [(name, *what) for name, what in (rates | FORGOTTEN | QUALITY).items()]
  said = [_change(phases, name, title, unit) for name, title, unit in told if name in phases[-1]]
  return ", ".join(said[:MOST]) + "." if said else "Done."


def plural(count: int, noun: str) -> str:
  """`1 run`, `2 runs`."""
  return f"{count:,} {noun}{'s' * (count != 1)}"


def _change(phases: Sequence[Mapping[str, Any]], name: str, title: str, unit: str) -> str:
  values = [float(phase[name]["value"]) for phase in phases if name in phase]
  if unit == "±" and len(values) == 2 and values[0] > 0:
    return f"{title} {100 * (values[1] / values[0] - 1):+.0f}%"
  percent = lambda v: "100%" if v == 1 else f"{100 * v:.2g}%"
  shown = [percent(v) if unit == "%" else f"{v:.3g}" for v in values]
  return f"{title} {' -> '.join(shown)}"
