"""What the ledger of a run of compartments says of a deletion: sentences, and what was done when.

A deletion there is exact: what had seen the record was trained again without it. Whether the bits
equal those of a training that never had it is in the ledger too, where that was proven.
"""

import json
from collections.abc import Sequence
from typing import Any

from jaxunlearn.cdm import proof
from jaxunlearn.cdm.log import Log
from jaxunlearn.reports.said import AGAINST, FOR, UNKNOWN, Said

EVENTS = {
  "delete": "the records were taken out of their sources, and what had seen them was removed",
  "deleted": "the key of one record was destroyed",
  "trained": "a checkpoint was written",
  "router": "the router was fitted again",
  "proof": "a shard was compared with one trained from step 0 without the records",
}


def done(log: Log, at: Sequence[int]) -> list[tuple[str, str]]:
  """(UTC, what) of the ledger's lines from the deletion on, for those at the places `at`."""
  if not at:
    return []
  lines = [json.loads(line) for line in log.lines]
  first = max((i for i in range(min(at)) if lines[i]["event"] == "delete"), default=min(at))
  mine = [line for line in lines[first:] if line["event"] in EVENTS]
  return [(line["time"], _told(line)) for line in mine]


def _told(line: dict[str, Any]) -> str:
  what = EVENTS[line["event"]]
  where = f" ({line['source']})" if "source" in line else ""
  equal = f": {'equal' if line['equal'] else 'different'}" if "equal" in line else ""
  return f"line {line['line']}: {what}{where}{equal}"


def sentences(log: Log, at: Sequence[int], backbone: str) -> list[Said]:
  """What speaks for and against, of the deletions at those places of the ledger."""
  methods = [proof.method(log, index) for index in at]
  numbers = ", ".join(str(index + 1) for index in at[:5]) + (", …" if len(at) > 5 else "")
  identity = f"ledger lines={numbers} size={len(log.lines)}"
  say = lambda side, text: Said(side, text, "ledger", identity)
  where = f"line{'s' * (len(at) > 1)} {numbers} of the ledger"
  names = {method["name"] for method in methods}
  if "unknown" in names:
    out = [say(UNKNOWN, f"How the records were deleted is not in the ledger: {where}.")]
  elif names == {"sourceDropped"}:
    out = [say(FOR, f"The whole source with the network that it trained was removed: {where}.")]
  else:
    out = [_retrained(log, methods, min(at), identity)]
    text = f"What had seen the records was removed, and trained again without them: {where}."
    out.insert(0, say(FOR, text))
  if backbone:
    text = (
      f"Every source builds on {backbone}, which the deletion leaves as it is. Whether that was "
      "trained on the records is not in the ledger."
    )
    out.append(say(UNKNOWN, text))
  return out


def _retrained(log: Log, methods: Sequence[dict[str, Any]], first: int, identity: str) -> Said:
  """Whether training from step 0 gave the same bits."""
  later = [json.loads(line) for line in log.lines[first:]]
  proofs = [line for line in later if line["event"] == "proof"]
  unequal = [line for line in proofs if not line["equal"]]
  if proofs and all(method.get("equalToNeverTrained") for method in methods):
    text = "Every bit equals that of a training from step 0 that never had the records"
    return Said(FOR, f"{text}: line {proofs[-1]['line']} of the ledger.", "proof", identity)
  if unequal:
    text = "A training from step 0 without the records gave other bits"
    return Said(AGAINST, f"{text}: line {unequal[-1]['line']} of the ledger.", "proof", identity)
  text = "That the result equals a training which never had them was not proven: run with --prove."
  return Said(UNKNOWN, text, "proof", identity)
