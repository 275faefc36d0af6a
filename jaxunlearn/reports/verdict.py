"""The verdict on a run: one sentence, of attacks and compartments what speaks for it, its headline.

Made from the metrics that there are. Two values differ clearly where their intervals lie apart, or,
without intervals, by more than SMALL of the first. A change that is larger than that, of which the
intervals do not say whether it is one, is on neither side. Of a deletion evidence.py says the rest.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxunlearn import streams
from jaxunlearn.reports import names, rows, subject
from jaxunlearn.reports.rows import Results
from jaxunlearn.reports.subject import Config

RECOVERED = 0.5  # an AR from here on is flagged
SMALL = 0.05
PROBE = "probe_ar"  # as train.py logs it
ENDS = ("completion_ar", "ar")  # the AR of an evaluation
# The metrics that are judged: by the end of their names, whether they should rise.
FORGETS = {"_rate": False, "ua": True, "copy_score": False, "sscd": False, "nll_bpd": True}
KEEPS = {
  "inception_score": True,
  "ira": True,
  "worst_ira": True,
  "cra": True,
  "worst_class_share": True,
  "typical_share": True,
  "clip_iqa": True,
  "clip_score": True,
  "feature_fid": False,
  "fid": False,
  "retain_grad_norm": False,
}
Entry = Mapping[str, Any]  # value, ci95, identity
Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Verdict:
  line: str
  pro: tuple[str, ...] = ()  # that it is gone, and the rest is kept
  contra: tuple[str, ...] = ()


def verdict(config: Config, results: Results, metrics: Lines = ()) -> Verdict:
  """The verdict of one run's page."""
  kind = subject.kind(config)
  if kind == "attack":
    return _of_attack(config, results, metrics)
  if kind == "compartments":
    return _of_compartments(results)
  if kind == "training" or not subject.deleted(config):
    return _of_training(results)
  return _of_deletion(config, results)


def headline(config: Config, results: Results, metrics: Lines = ()) -> str:
  """`T-shirt 3.1% -> 0% (under 0.74%), inception score -3%`: the run in one line of a terminal."""
  kind = subject.kind(config)
  if config.get("attack") in streams.STILL:
    return _of_still(config, results).line
  if kind == "attack":
    step = first_recovery(results, metrics)
    ends = f"first recovered at step {step}" if step is not None else "not recovered"
    ars = [ar for _, ar in recovery(results, metrics)]
    probed = f"AR {max(ars):.2g} at most" if ars else ""
    said = _arrow(config, results, "ua") or probed
    return f"{said}, {ends}" if said else "not measured: no AR, no UA"
  if kind == "compartments":
    return _of_compartments(results).line
  found = _find(results, FORGETS) if subject.deleted(config) else ""
  parts = [_arrow(config, results, found)] if found else []
  if (other := original(found)) in results.get("after", {}):
    parts[0] += f", by the original prompt {_change(results, other, '->')}"
  parts += [part for name in judged(results, KEEPS)[:2] if (part := _kept(results, name))]
  return ", ".join(parts[:2]) or "nothing was evaluated"


def first_recovery(results: Results, metrics: Lines) -> int | None:
  """The first step at which AR is at least RECOVERED; 0 where it was before the attack."""
  return next((step for step, ar in recovery(results, metrics) if ar >= RECOVERED), None)


def recovery(results: Results, metrics: Lines) -> list[tuple[int, float]]:
  """(step, AR): before, at the probes, and after, where they are finite."""
  last = max((line["step"] for line in metrics), default=0)
  at = lambda phase, step: (
    [(step, results[phase]["ar"]["value"])] if has(results, phase, "ar") else []
  )
  probes = [(line["step"], line[PROBE]) for line in metrics if PROBE in line]
  points = [*at("before", 0), *probes, *at("after", last)]
  return [(step, float(ar)) for step, ar in points if math.isfinite(float(ar))]


# A deletion.


def _of_deletion(config: Config, results: Results) -> Verdict:
  if not results.get("after"):
    return Verdict("Nothing was measured after: this page does not say whether it is gone.")
  return Verdict(_seen(config, results))


def _seen(config: Config, results: Results) -> str:
  """How many samples show what was to be forgotten; else what another metric says."""
  name = next((n for n in results["after"] if n.endswith("_rate") or n == "ar"), "")
  if not name:
    found = _find(results, FORGETS)
    other = "No metric looks for it: this page does not say whether it is gone."
    return _sentence(compared(results, found)) if found else other
  asked = " asked for it" if name == "ar" else ""
  out = f"{_capital(subject.in_sentence(config))} is seen {_in_samples(results, name, asked)}."
  entry, other = results["after"][name], original(name)
  if entry["value"] == 0 and entry["ci95"]:
    out += f" That leaves room for a rate of up to {float(entry['ci95'][1]):.2%} (95%)."
  if other in results["after"]:
    out += f" By the original prompt it is seen {_in_samples(results, other)}."
  return out


def original(name: str) -> str:
  """The name of a rate by the original prompt: evals/memorised.py."""
  return f"{name.removesuffix('_rate')}_original_rate"


def _in_samples(results: Results, name: str, asked: str = "") -> str:
  """`in 2 of 64 samples before, in 0 of 64 samples after`."""
  return ", ".join(
    f"in {_count(results[phase][name])} samples{asked} {phase}"
    for phase in ("before", "after")
    if has(results, phase, name)
  )


def _count(entry: Entry) -> str:
  """`2 of 24`, from a share and its identity."""
  facts, share = rows.pairs_of(entry["identity"]), float(entry["value"])
  n = facts.get("asked") or facts.get("n") or ""
  known = n.isdigit() and math.isfinite(share)
  return f"{round(share * int(n))} of {n}" if known else f"{share:.1%} of"


def side(results: Results, name: str, aims: Mapping[str, bool]) -> str:
  """The side that a metric is on: pro, contra, unclear; "" where it says nothing."""
  value = float(results["after"][name]["value"])
  if not has(results, "before", name):
    passed = {"_rate": value == 0, "ua": value >= RECOVERED}.get(end(aims, name))
    return "" if passed is None else "pro" if passed else "contra"
  if rows.row(name, {p: results[p] for p in ("before", "after")}).differs:
    return ""
  if math.isnan(value):
    return "" if aims is FORGETS else "contra"
  before = results["before"][name]
  moved = value - float(before["value"])
  well = (moved > 0) == aims[end(aims, name)]
  if apart(before, results["after"][name]):
    return "pro" if well else "contra"
  small = abs(moved) <= SMALL * abs(float(before["value"]))
  if aims is FORGETS:
    return "contra" if small or not well else "unclear"
  return "pro" if small or well else "unclear"


def apart(before: Entry, after: Entry) -> bool:
  if before["ci95"] and after["ci95"]:
    (low, high), (low_2, high_2) = (map(float, e["ci95"]) for e in (before, after))
    return high < low_2 or high_2 < low
  first, second = (float(e["value"]) for e in (before, after))
  return not abs(second - first) <= SMALL * abs(first)


def compared(results: Results, name: str) -> str:
  """`inception score 7.2 → 7.0 (-3%), no clear change`."""
  after, title = results["after"][name], names.metric(name)
  second = float(after["value"])
  if not has(results, "before", name):
    return f"{title} {second:.3g}"
  before = results["before"][name]
  first = float(before["value"])
  finite = first and math.isfinite(second / first)
  share = f" ({(second - first) / abs(first):+.0%})" if finite and first != second else ""
  clear = "" if apart(before, after) else ", no clear change"
  return f"{title} {first:.3g} → {second:.3g}{share}{clear}"


# An attack.


def _of_still(config: Config, results: Results) -> Verdict:
  """Of an attack that trains nothing."""
  wanted, after = subject.in_sentence(config), results.get("after", {})
  found = [float(after[name]["value"]) for name in ENDS if name in after]
  if not found:
    return Verdict(f"No metric says whether {wanted} came back: the samples are kept for others.")
  verb = "comes" if found[0] >= RECOVERED else "does not come"
  return Verdict(f"{_capital(wanted)} {verb} back: AR is {found[0]:.3g}, and nothing was trained.")


def _of_attack(config: Config, results: Results, metrics: Lines) -> Verdict:
  if config["attack"] in streams.STILL:
    return _of_still(config, results)
  points, wanted = recovery(results, metrics), subject.in_sentence(config)
  if not points:
    return Verdict(f"No metric says whether {wanted} came back: the samples are kept for others.")
  wanted = _capital(wanted)
  change = _arrow(config, results, "ua", "→").partition("UA ")[2]
  change = f"UA {change}. " if change else ""
  last, (step, most) = points[-1][0], max(points, key=lambda point: point[1])
  first = first_recovery(results, metrics)
  highest = f"AR is {most:.3g} at most, at step {step}"
  looked = f"{highest}, in {len(points)} evaluations; from {RECOVERED} on it counts as recovered."
  cost = tuple(f"The attack also harmed what is kept: {words}." for words in _worse(results))
  if first is None:
    return Verdict(f"{wanted} did not come back in {last} steps. {change}", (looked, *cost))
  if first == 0:
    return Verdict(f"{wanted} was there before the attack began. {change}", cost, (looked,))
  return Verdict(f"{wanted} came back: first recovered at step {first}. {change}", cost, (looked,))


def _worse(results: Results) -> list[str]:
  """What of the kept got worse by an attack, in words: the first such metric."""
  bad = [n for n in judged(results, KEEPS) if side(results, n, KEEPS) == "contra"]
  return [compared(results, name) for name in bad[:1]]


# Compartments, and training.


def _of_compartments(results: Results) -> Verdict:
  name = next((n for n in ("fid", "feature_fid") if any(n in p for p in results.values())), "")
  entries = {phase: values[name] for phase, values in results.items() if name in values}
  value = lambda phase: float(entries[phase]["value"])
  alone = sorted((p for p in entries if p.startswith("alone_")), key=value)
  mixed = sorted((p for p in entries if p not in alone), key=value)
  if not mixed:
    return Verdict("No quality was measured.")
  told = lambda phase, end="": f"{value(phase):.3g}{end} ({names.phase(phase)})"
  line = f"{_capital(names.metric(name))} {told(mixed[0], ' at best')}"
  if len(mixed) > 1:
    line += f", {told(mixed[-1], ' at worst')}"
    line += "" if apart(entries[mixed[0]], entries[mixed[-1]]) else ", no clear difference"
  if not alone:
    return Verdict(f"{line}.")
  against = f"than the best source alone, {value(alone[0]):.3g}"
  clear = lambda p: value(p) < value(alone[0]) and apart(entries[p], entries[alone[0]])
  better, others = ([p for p in mixed if clear(p) == is_clear] for is_clear in (True, False))
  pro = (f"Better {against}: {', '.join(map(told, better))}.",) if better else ()
  contra = (f"Not clearly better {against}: {', '.join(map(told, others))}.",) if others else ()
  lost = "One network of all data was not measured here: what the split costs is not shown."
  span = (
    f"{value(alone[0]):.3g} to {value(alone[-1]):.3g}"
    if len(alone) > 1
    else f"{value(alone[0]):.3g}"
  )
  return Verdict(f"{line}; a source alone {span}.", pro, (*contra, lost))


def _of_training(results: Results) -> Verdict:
  told = [compared(results, name) for name in judged(results, KEEPS)]
  if not told:
    return Verdict("The quality of the samples was not measured.")
  return Verdict(f"{_capital(', '.join(told))}.")


# Words.


def _arrow(config: Config, results: Results, name: str, arrow: str = "->") -> str:
  """`T-shirt 3.1% -> 0% (under 0.74%)`, `Trouser UA 0.02 -> 0.98`."""
  title = "" if name.endswith("_rate") else f" {names.metric(name)}"
  change = _change(results, name, arrow)
  return f"{_capital(subject.target(config))}{title} {change}" if change else ""


def _change(results: Results, name: str, arrow: str) -> str:
  """`3.1% -> 0% (under 0.74%)`."""
  entries = [results[p][name] for p in ("before", "after") if has(results, p, name)]
  rate = name.endswith("_rate")
  shown = lambda e: f"{float(e['value']):.2g}" if not rate else _percent(float(e["value"]))
  out = f" {arrow} ".join(map(shown, entries))
  if rate and entries and entries[-1]["value"] == 0 and entries[-1]["ci95"]:
    out += f" (under {_percent(float(entries[-1]['ci95'][1]))})"
  return out


def _kept(results: Results, name: str) -> str:
  """`inception score -3%`, or its value where there is none before."""
  after = float(results["after"][name]["value"])
  if not has(results, "before", name):
    return f"{names.metric(name)} {after:.3g}"
  before = float(results["before"][name]["value"])
  if not before or not math.isfinite(after / before):
    return f"{names.metric(name)} {before:.3g} -> {after:.3g}"
  return f"{names.metric(name)} {(after - before) / abs(before):+.0%}"


def judged(results: Results, aims: Mapping[str, bool]) -> list[str]:
  """The metrics after the run that `aims` speaks of, in its order."""
  order = list(aims)
  found = [name for name in results.get("after", {}) if end(aims, name)]
  return sorted(found, key=lambda name: order.index(end(aims, name)))


def _find(results: Results, aims: Mapping[str, bool]) -> str:
  return next(iter(judged(results, aims)), "")


def end(aims: Iterable[str], name: str) -> str:
  """The key that a metric goes by; "" of one that is not judged."""
  return next((e for e in aims if name == e or (e == "_rate" and name.endswith(e))), "")


def has(results: Results, phase: str, name: str) -> bool:
  return name in results.get(phase, {})


def _sentence(text: str) -> str:
  return f"{_capital(text)}."


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]


def _percent(share: float) -> str:
  """Two digits, and three near 100%."""
  return f"{100 * share:.{2 if share < 0.995 else 3}g}%"
