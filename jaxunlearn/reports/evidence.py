"""What speaks for forgetting, what against, and what cannot be said: plain words from numbers.

Each sentence comes from one rule and has the metric and its values. A metric that could not have
seen the difference, like an attack that does not tell the kept from others either, says nothing:
its silence stands under what cannot be said. verdict.py says when two values differ clearly,
membership.py (beside this file) what the attacks on membership show.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxunlearn.evals import three_sample
from jaxunlearn.reports import membership, names, rows, subject, verdict
from jaxunlearn.reports.rows import Results
from jaxunlearn.reports.said import AGAINST, FOR, UNKNOWN, Said, valued
from jaxunlearn.reports.subject import Config
from jaxunlearn.reports.verdict import FORGETS, KEEPS, Lines

HEADINGS = {
  FOR: "What speaks for forgetting",
  AGAINST: "What speaks against",
  UNKNOWN: "What cannot be said",
}
SIDES = {"pro": FOR, "contra": AGAINST, "unclear": UNKNOWN, "": UNKNOWN}
# The end of a metric's name -> what its side means.
PLAIN = {
  "_rate": {
    FOR: "fewer samples show {what}",
    AGAINST: "samples show {what} no less than before",
    UNKNOWN: "whether fewer samples show {what} is not clear",
  },
  "ua": {
    FOR: "asked for {what}, the model draws something else more often",
    AGAINST: "asked for {what}, the model still draws it",
    UNKNOWN: "whether the model draws {what} less often is not clear",
  },
  "copy_score": {
    FOR: "half hidden in noise, {what} is restored worse",
    AGAINST: "half hidden in noise, {what} is restored no worse than before",
    UNKNOWN: "whether {what} is restored worse from noise is not clear",
  },
  "nll_bpd": {
    FOR: "{what} is more of a surprise to the model",
    AGAINST: "{what} is no more of a surprise to the model than before",
    UNKNOWN: "whether {what} is more of a surprise to the model is not clear",
  },
}
PLAIN["sscd"] = PLAIN["copy_score"]
HARM = {
  FOR: "what is kept shows no clear harm",
  AGAINST: "what is kept got worse, so that not seeing {what} may be harm and no forgetting",
  UNKNOWN: "whether what is kept was harmed is not clear",
}
ALONE = {  # no value before
  "_rate": ("no sample shows {what}", "samples show {what}"),
  "ua": ("asked for {what}, the model mostly draws something else", PLAIN["ua"][AGAINST]),
}


class Attack(NamedTuple):
  """A run that attacked the one in question."""

  name: str
  config: Config
  results: Results
  metrics: Lines


def evidence(
  config: Config,
  results: Results,
  metrics: Lines = (),
  attacks: Iterable[Attack] = (),
  yardstick: Mapping[str, Any] | None = None,
) -> list[Said]:
  """The sentences on a run that deleted something, or attacks one that did; [] on others.

  Args:
    metrics: the lines of metrics.jsonl.
    attacks: runs that attacked this one.
    yardstick: the values of a model that was trained without the records.
  """
  kind = subject.kind(config)
  if kind == "attack":
    said = verdict.verdict(config, results, metrics)
    sides = ((FOR, said.pro), (AGAINST, said.contra))
    return [Said(side, text, "ar") for side, lines in sides for text in lines]
  if kind not in subject.DELETING:
    return []
  what = subject.in_sentence(config)
  found = _told(results, what, yardstick or {}) if results.get("after") else []
  out = [*_trained(kind, what), *found, *_attacked(list(attacks), kind, what)]
  return [*out, *_unmeasured(kind, results)]


def cards(found: Sequence[Said]) -> list[tuple[str, list[str]]]:
  """(heading, sentences) of each side; what cannot be said is left out where there is nothing."""
  lines = {side: [one.text for one in found if one.side == side] for side in HEADINGS}
  return [(HEADINGS[side], mine) for side, mine in lines.items() if mine or side != UNKNOWN]


def as_data(found: Sequence[Said]) -> list[dict[str, str]]:
  """As results.json has it."""
  return [one._asdict() for one in found]


def _unmeasured(kind: str, results: Results) -> list[Said]:
  if not results.get("after"):
    return [Said(UNKNOWN, "Nothing was measured after the deletion.", "after")]
  if "before" in results or kind == "retraining":
    return []
  text = "Nothing was measured before: how much of this the run itself did is not shown."
  return [Said(UNKNOWN, text, "before")]


def _trained(kind: str, what: str) -> list[Said]:
  """What follows from how the model was trained."""
  if kind == "retraining":
    text = (
      f"The model was trained from random parameters without {what}. Only near copies among the "
      "rest can have taught it what these records show."
    )
    return [Said(FOR, text, "training")]
  text = (
    "The weights were trained further, not from scratch. What they still hold in a form that no "
    "metric reads is not known."
  )
  return [Said(UNKNOWN, text, "training")]


def _told(results: Results, what: str, yardstick: Mapping[str, Any]) -> list[Said]:
  """The sentences on metrics, in the order of weight."""
  after = results["after"]
  out = [_of_metric(results, name, FORGETS, what) for name in verdict.judged(results, FORGETS)]
  out += membership.sentences(results, yardstick)
  if "verdict" in after:
    out.append(_of_verdict(after["verdict"]))
  out += [_of_metric(results, name, KEEPS, what) for name in verdict.judged(results, KEEPS)]
  return out


def _of_metric(results: Results, name: str, aims: Mapping[str, bool], what: str) -> Said:
  """The sentence on one metric that is judged by its change."""
  after, key = results["after"][name], verdict.end(aims, name)
  values = f"{names.metric(name)} {_change(results, name)}"
  say = lambda side, text: Said(
    side, _sentence(f"{text.format(what=what)}: {values}"), name, str(after["identity"])
  )
  side = SIDES[verdict.side(results, name, aims)]
  if not verdict.has(results, "before", name):
    if key not in ALONE or not math.isfinite(float(after["value"])):
      return say(UNKNOWN, "measured after alone, which does not say what changed")
    return say(side, ALONE[key][side == AGAINST])
  if apart := rows.row(name, {p: results[p] for p in ("before", "after")}).differs:
    return say(UNKNOWN, f"measured in two ways ({apart}), so not to be compared")
  pair = [float(results[phase][name]["value"]) for phase in ("before", "after")]
  if key == "_rate" and pair == [0, 0]:
    return say(UNKNOWN, "samples did not show {what} before either, so this metric cannot tell")
  return say(side, (HARM if aims is KEEPS else PLAIN[key])[side])


def _change(results: Results, name: str) -> str:
  """`0.031 [0.019, 0.05] → 0 [0, 0.0074]`, or what there is of it."""
  there = [p for p in ("before", "after") if verdict.has(results, p, name)]
  return " → ".join(valued(results[phase][name]) for phase in there)


def _of_verdict(entry: Mapping[str, Any]) -> Said:
  """The verdict of three samples: nearer the retrained model, or the original?"""
  sides = {three_sample.ORIGINAL: AGAINST, three_sample.RETRAINED: FOR}
  words = str(entry["words"])
  side = next((sides[start] for start in sides if words.startswith(start)), UNKNOWN)
  text = {
    FOR: "Samples are nearer those of models trained without the records than the original's",
    AGAINST: "Samples are nearer those of the original than of models trained without the records",
    UNKNOWN: "Whether samples are nearer the retrained models' or the original's is open",
  }[side]
  return Said(side, f"{text}: {words}.", "verdict", str(entry["identity"]))


# Attacks that train the model further.


def _attacked(attacks: Sequence[Attack], kind: str, what: str) -> list[Said]:
  if not attacks and kind != "retraining":
    text = (
      "No attack that trains this model further is known of. A few such steps may bring back "
      f"{what}."
    )
    return [Said(UNKNOWN, text, "attack")]
  return [_of_attack(attack, what) for attack in attacks]


def _of_attack(attack: Attack, what: str) -> Said:
  """Whether it brought something back, and what that shows."""
  back, values, identity = _outcome(attack)
  shown = subject.learnt_from(attack.config)
  steps = attack.config.get("train", {}).get("steps", "some")
  head = f"The attack {attack.name}, {steps} steps on {shown},"
  say = lambda side, text: Said(side, f"{head} {text}: {values}.", attack.name, identity)
  if back is None:
    return Said(UNKNOWN, f"{head} has no metric that says what it brought back.", attack.name)
  if not back:
    return say(FOR, f"did not bring back {what}; longer ones, or others, may")
  if attack.config.get("attack") == "dimra":
    return say(AGAINST, f"brought back {what} without an image of it")
  return say(
    UNKNOWN,
    f"brought back {what}, of which it was shown images; only the same attack on a model that "
    "never saw it tells what was remembered and what was learnt anew",
  )


def _outcome(attack: Attack) -> tuple[bool | None, str, str]:
  """Whether it came back (None: not measured), by which values, of which identity."""
  results = attack.results
  if points := verdict.recovery(results, attack.metrics):
    step, most = max(points, key=lambda point: point[1])
    first = verdict.first_recovery(results, attack.metrics)
    entry = results.get("after", {}).get("ar", {})
    told = f"AR {most:.3g} at most, at step {step} of its {len(points)} evaluations"
    return first is not None, told, str(entry.get("identity", ""))
  rates = [n for n in verdict.judged(results, FORGETS) if verdict.end(FORGETS, n) == "_rate"]
  if not rates:
    return None, "", ""
  entry = results["after"][rates[0]]
  back = verdict.side(results, rates[0], FORGETS) == "contra" and float(entry["value"]) > 0
  return back, f"{names.metric(rates[0])} {_change(results, rates[0])}", str(entry["identity"])


def _sentence(text: str) -> str:
  return f"{text[:1].upper()}{text[1:]}."
