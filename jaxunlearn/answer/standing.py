"""What became of some records in a run: trained on, deleted, or never seen.

A run of one model says so in its records.txt (data/roll.py) and config; one of compartments by the
keys that it still has (cdm/keys.py). A record is known by its id and the mark of its picture, so
that another picture of the same name is not taken for it.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from jaxunlearn import checkpoint, data, fields
from jaxunlearn.cdm import keys
from jaxunlearn.data import roll
from jaxunlearn.reports import lineage, subject
from jaxunlearn.reports.subject import Config
from jaxunlearn.weights import layout

TRAINED, DELETED, SHOWN = "trained on it", "deleted it", "shown it by an attack"
DERIVED, AFTER, NEVER = "made from a model trained on it", "made after its deletion", "never saw it"
HOLDS = (TRAINED, SHOWN, DERIVED)
EARLIER, KEPT = "deleted by an earlier run", "kept"


class Wanted(NamedTuple):
  """A record to be looked for in runs."""

  id: str
  mark: str


def wanted(records: data.Records, ids: Collection[str]) -> list[Wanted]:
  """Those records, with the marks of their pictures."""
  mine = records.take(np.flatnonzero(np.isin(records.ids, list(ids))))
  return [Wanted(*pair) for pair in zip(mine.ids.tolist(), roll.marks(mine), strict=True)]


def of_run(config: Config, records: data.Records) -> dict[str, str]:
  """id -> DELETED, EARLIER or KEPT, of all records of the data of a run of one model.

  What runs after it are to delete (forget.later) is kept: the model has it still.
  """
  request = data.Forget(**fields.restored(dict(config["forget"])))
  left = request.remaining(records)
  gone = set(left.ids[request.mask(left)].tolist()) if subject.deletes(config) else set()
  there = set(dataclasses.replace(request, later=()).remaining(records).ids.tolist())
  state = lambda name: EARLIER if name not in there else DELETED if name in gone else KEPT
  return {name: state(name) for name in records.ids.tolist()}


def check_finished(run: pathlib.Path, config: Config) -> None:
  """Raises ValueError where a run has not come to its end."""
  step, steps = checkpoint.latest_step(run), config["train"]["steps"]
  if (step or 0) < steps or not (run / "results.json").is_file():
    raise ValueError(
      f"{run} is at step {step or 0} of {steps} or was not evaluated; give its command again to "
      "finish it, then answer"
    )


class Runs:
  """What runs under a root hold of the records."""

  def __init__(self, looked_for: Collection[Wanted], origins: Collection[str] = ()):
    self._marks = {one.id: one.mark for one in looked_for}
    self._origins = set(origins)  # models that are known to be trained on them
    self._known: dict[pathlib.Path, str] = {}

  def holds(self, run: pathlib.Path) -> str:
    """TRAINED, SHOWN, DERIVED, DELETED, AFTER or NEVER."""
    run = run.resolve()
    if run not in self._known:
      self._known[run] = NEVER  # where runs name each other in a circle
      self._known[run] = self._own(run) or self._inherited(run)
    return self._known[run]

  def _own(self, run: pathlib.Path) -> str:
    """By its own records; "" where none of them is wanted."""
    config = _config(run)
    if "sources" in config:
      found = keys.Keys(run).of_ids(self._marks) if (run / keys.FILE).exists() else {}
      return TRAINED if any(one.mark == self._marks[name] for name, one in found.items()) else ""
    parts, steps = self._parts(run), config.get("train", {}).get("steps")
    if "kept" in parts and steps:
      return TRAINED
    if "forget" not in parts:
      return ""
    if subject.deletes(config):
      return DELETED
    takes = {take.take for take in subject.takes(config).values()}
    if config.get("attack"):
      return SHOWN if "forget" in takes else ""
    return TRAINED if {"forget", "all"} & takes and steps else ""

  def _parts(self, run: pathlib.Path) -> set[str]:
    """The sets of a run that one of the records is in."""
    path = run / roll.FILE
    if not path.exists():
      return set()
    with contextlib.suppress(ValueError):  # a damaged list says nothing
      found = roll.read(path)
      mine = ((name, entry) for (_, name), entry in found.items() if name in self._marks)
      return {entry.part for name, entry in mine if entry.mark == self._marks[name]}
    return set()

  def _inherited(self, run: pathlib.Path) -> str:
    """By what it was made from."""
    found = set()
    for one in lineage.read(run)["from"]:
      if one["origin"] in self._origins:
        found.add(DERIVED)
      elif one["path"] and lineage.is_run(pathlib.Path(one["path"])):
        found.add(self.holds(pathlib.Path(one["path"])))
    if found & set(HOLDS):
      return DERIVED
    return AFTER if found & {DELETED, AFTER} else NEVER


def check_sources(run: pathlib.Path, named: Collection[str], ids: Collection[str]) -> None:
  """Raises ValueError where a record is of no source of a run of compartments."""
  if lost := [name for name in ids if name not in named]:
    raise ValueError(
      f"{lost[0]!r} belongs to no source of {run}: it was deleted before, or never was in it. The "
      "ledger names no record; if it was deleted, give its --receipt"
    )


def _config(run: pathlib.Path) -> dict:
  path = run / lineage.CONFIG
  return layout.read_json(path) if path.is_file() else {}
