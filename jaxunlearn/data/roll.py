"""The roll of a run, RUN/records.txt: what each of its records was when the run began.

A line a record: the set it is in (kept, forget, heldout, or the stream that reads it from
elsewhere), a mark of its picture, class and style, and its id. A run that goes on reads the data
again; batches are a function of the seed and the step for the same records alone, so that other
records would be another run.
"""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from jaxunlearn.data.records import Records
from jaxunlearn.data.walk import listed

FILE = "records.txt"
DIGITS = 16  # of a mark

Key = tuple[str, str]  # where a record is read from, "" for the data of the run, and its id


@dataclasses.dataclass(frozen=True)
class Entry:
  part: str  # kept, forget, heldout or a stream
  mark: str


def of(
  train: Records,
  forget: np.ndarray,
  heldout: Records,
  others: Mapping[str, Records],
) -> dict[Key, Entry]:
  """The roll of a run's records, the ones to forget among them, and what streams read besides."""
  out: dict[Key, Entry] = {}
  for records, parts in ((train, np.where(forget, "forget", "kept")), (heldout, ["heldout"])):
    parts = np.broadcast_to(parts, len(records)).tolist()
    for name, mark, part in zip(records.ids.tolist(), marks(records), parts, strict=True):
      out["", name] = Entry(part, mark)
  for stream, records in others.items():
    for name, mark in zip(records.ids.tolist(), marks(records), strict=True):
      out[stream, name] = Entry(stream, mark)
  return out


def marks(records: Records) -> list[str]:
  """A hash of each record's picture, class and style."""
  names = [[classes[i] for i in column] for classes, column in _columns(records)]
  rows = zip(records.stamps().tolist(), *names, strict=True)
  return [hashlib.sha256("\0".join(row).encode()).hexdigest()[:DIGITS] for row in rows]


def write(roll: Mapping[Key, Entry]) -> str:
  """The text of records.txt."""
  lines = [f"{entry.part}\t{entry.mark}\t{name}\n" for (_, name), entry in roll.items()]
  return "".join(lines)


def read(path: pathlib.Path) -> dict[Key, Entry]:
  """The roll in that file; raises ValueError where it is none."""
  out: dict[Key, Entry] = {}
  for number, line in enumerate(path.read_text().split("\n")[:-1], start=1):
    part, _, rest = line.partition("\t")
    mark, _, name = rest.partition("\t")
    if not name:
      raise ValueError(
        f"{path} is damaged at line {number}; delete it to go on with the data as it is"
      )
    out["" if part in ("kept", "forget", "heldout") else part, name] = Entry(part, mark)
  return out


def check(folder: pathlib.Path, now: Mapping[Key, Entry]) -> None:
  """Raises ValueError where the records of the run in that folder are not what they were."""
  path = folder / FILE
  if not path.exists():
    logging.warning("%s has no %s: its data is taken to be what it was", folder, FILE)
    return
  advice = f"Restore it, or use another --workdir; to go on with the data as it is, delete {path}"
  compare(folder, read(path), now, advice)


def compare(
  folder: pathlib.Path, then: Mapping[Key, Entry], now: Mapping[Key, Entry], advice: str
) -> None:
  """Raises ValueError with the advice where the two differ."""
  if changes := differences(then, now):
    raise ValueError(f"the data of {folder} changed since the run began: {changes}. {advice}")


def differences(then: Mapping[Key, Entry], now: Mapping[Key, Entry]) -> str:
  """`5 records added ('cat/n0.png', ...), 1 changed (...)`; "" for none."""
  found = collections.defaultdict(list)
  for key in sorted(then.keys() | now.keys()):
    old, new = then.get(key), now.get(key)
    if old is None or new is None:
      found["added" if old is None else "missing"].append(key[1])
    elif old.mark != new.mark:
      found["changed"].append(key[1])
    elif old.part != new.part:
      found[f"{_WORDS[old.part]} before and now {_WORDS[new.part]}"].append(key[1])
  rows = [f"{len(names)} {what} ({listed(names)})" for what, names in found.items()]
  return f"{len(then)} records then, {len(now)} now: {', '.join(rows)}" if rows else ""


_WORDS = {"kept": "kept", "forget": "to be forgotten", "heldout": "held out"}


def _columns(records: Records) -> list[tuple[tuple[str, ...], list[int]]]:
  """(names, values) of each condition."""
  columns = [records.label] if records.style is None else [records.label, records.style]
  return [(names, c.tolist()) for names, c in zip(records.vocabulary, columns, strict=True)]
