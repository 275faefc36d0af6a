"""What attacks on membership say for and against forgetting (evals/membership.py has the metrics).

Of the deleted, an attack gives an AUC with its interval, or, of fewer than 20 records, the p-values
of both ends. It finds them where the interval leaves out .5, or where p is at most
LEVEL / (2 ends x attacks). Its silence counts only where it sees: it tells the kept from held-out
records, or told the deleted before the run. What it does to a model that never had the records as
well is no sign of memory.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxunlearn.reports import rows
from jaxunlearn.reports.rows import Results
from jaxunlearn.reports.said import AGAINST, FOR, UNKNOWN, Said, valued

LEVEL = 0.05
ATTACKED, CHANGED = "membership_", "membership_change_"
GUESS = 0.5  # an AUC
LOW, HIGH, OPEN, SILENT = "low", "high", "open", "silent"  # what an attack finds, and at which end
ENDS = {
  LOW: "finds the deleted records still",
  HIGH: (
    "tells the deleted records from others by the other end, as ones that were pushed away, which "
    "betrays them"
  ),
}
Values = Mapping[str, Any]  # the metrics of one phase


class Found(NamedTuple):
  """What one attack finds of the deleted records in one model."""

  end: str  # LOW: as a member; HIGH: the other end; OPEN: not clear; SILENT
  values: str
  metric: str
  identity: str


def sentences(results: Results, yardstick: Values) -> list[Said]:
  """One sentence of each attack, and of each that has the model before and after."""
  after, before = results["after"], results.get("before", {})
  groups = list(dict.fromkeys(name.partition("/")[0] for name in after if "/" in name))
  attacks = [g for g in groups if g.startswith(ATTACKED) and not g.startswith(CHANGED)]
  level = LEVEL / (2 * max(len(attacks), 1))
  out = []
  for group in attacks:
    if here := found(after, group, level):
      out.append(_of_attack(group, here, found(before, group, level), after, yardstick, level))
  for group in groups:
    if group.startswith(CHANGED) and (here := found(after, group, level)):
      out += _of_change(group, here, after)
  return out


def found(values: Values, group: str, level: float) -> Found | None:
  """What the attack of that group finds of the deleted; None where it was not measured."""
  if entry := values.get(f"{group}/deleted-auc"):
    told = f"AUC {valued(entry)}"
    return Found(_of_auc(entry), told, f"{group}/deleted-auc", str(entry["identity"]))
  both = [values.get(f"{group}/deleted-{name}") for name in ("p", "p-high")]
  if None in both:
    return None
  low, high = (float(entry["value"]) for entry in both if entry)
  identity = str(both[0] and both[0]["identity"])
  told = f"p {low:.2g}, of the other end {high:.2g}"
  return Found(_of_p(low, high, level), told, f"{group}/deleted-p", identity)


def _of_auc(entry: Values) -> str:
  """The end at which an interval leaves out .5."""
  if not entry["ci95"] or not math.isfinite(float(entry["value"])):
    return OPEN
  low, high = map(float, entry["ci95"])
  return LOW if low > GUESS else HIGH if high < GUESS else SILENT


def _of_p(low: float, high: float, level: float) -> str:
  if not math.isfinite(low + high):
    return OPEN
  if min(low, high) <= level:
    return LOW if low <= high else HIGH
  return OPEN if min(low, high) <= LEVEL else SILENT


def _of_attack(
  group: str, here: Found, before: Found | None, after: Values, yardstick: Values, level: float
) -> Said:
  attack = f"An attack that guesses what the model was trained on ({group.removeprefix(ATTACKED)})"
  same = found(yardstick, group, level)
  same = same if same and _alike(same, here) else None
  if _too_few(here, level):
    side, text = UNKNOWN, "has too few held-out records to find any"
  elif here.end == OPEN:
    side, text = UNKNOWN, "gives no clear answer on the deleted"
  elif here.end == SILENT:
    side, text = _of_silence(after.get(f"{group}/kept-auc"), before)
  elif same and same.end == here.end:
    side = UNKNOWN
    text = (
      "tells the deleted records from others, and does so in a model that was trained without them "
      f"too ({same.values})"
    )
  else:
    side, text = AGAINST, f"{ENDS[here.end]}{_beside(same)}"
  return Said(side, f"{attack} {text}: {here.values}.", here.metric, here.identity)


def _beside(same: Found | None) -> str:
  """What a model without the records does, where it does something else."""
  if same:
    return f"; in a model that was trained without them it does not ({same.values})"
  return ", unless it does so in a model that was trained without them"


def _of_silence(kept: Values | None, before: Found | None) -> tuple[str, str]:
  """What it means that an attack finds nothing: (side, text)."""
  told = f"AUC of the kept {valued(kept)}" if kept else "the kept were not measured"
  if kept and _of_auc(kept) == LOW:
    return FOR, f"does not find the deleted records, and sees in this model ({told})"
  if before and before.end == LOW:
    return FOR, f"found the deleted records before ({before.values}) and does so no more"
  return UNKNOWN, f"finds nothing, but is blind in this model ({told}): its silence says nothing"


def _too_few(here: Found, level: float) -> bool:
  """Whether the held-out records allow no p-value as small as it would have to be."""
  least = rows.pairs_of(here.identity).get("smallest_p", "")
  by_p = here.metric.endswith("/deleted-p")
  return by_p and bool(least) and float(least) > level


def _alike(one: Found, other: Found) -> bool:
  """Whether both were measured by the same attack on the same records."""
  facts = [rows.pairs_of(found.identity) for found in (one, other)]
  return all(facts[0].get(key) == facts[1].get(key) for key in ("attack", "records"))


def _of_change(group: str, here: Found, after: Values) -> list[Said]:
  """What the change itself gives away, to one who has both models."""
  name = group.removeprefix(CHANGED)
  who = f"Who has the model before and after, by the attack {name},"
  ends = {
    LOW: "can tell which records were deleted",
    HIGH: "can tell which records were deleted",
    OPEN: "may be able to tell which records were deleted",
    SILENT: "does not see which records were deleted; others may",
  }
  out = [Said(UNKNOWN, f"{who} {ends[here.end]}: {here.values}.", here.metric, here.identity)]
  kept = after.get(f"{group}/kept-auc")
  if kept and _of_auc(kept) in (LOW, HIGH):
    text = f"{who} can tell something of the kept: AUC {valued(kept)}."
    out.append(Said(UNKNOWN, text, f"{group}/kept-auc", str(kept["identity"])))
  return out
