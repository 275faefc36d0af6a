"""Sources: which record belongs to which, kept as data (RUN/sources.csv, of commitments: keys.py).

A `Split` says by what: the records' folder, class or style, a file's column, or uniformly at
random. Where more sources are asked for than there are values, each value is cut into equal parts
at random; where fewer, the values are dealt out in turn. What is random is a hash of (seed, id):
a record keeps its source whatever becomes of the others.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxunlearn import data, errors
from jaxunlearn.inputs import ranges
from jaxunlearn.reports import writer

FILE = "sources.csv"
COMMITMENT = "commitment"  # the first column
KINDS = ("folder", "class", "style", "uniform")


@dataclasses.dataclass(frozen=True)
class Split:
  """How records are told apart into sources."""

  by: str = "uniform"  # folder, class, style, uniform, or file:PATH of a CSV with id,source
  n: ranges.From0 = 2  # sources; 0: one for each value

  def __post_init__(self) -> None:
    if not self.by.startswith("file:"):
      errors.check_choice("split", self.by, (*KINDS, "file:PATH"))
    if self.n < 0 or (self.by == "uniform" and not self.n):
      raise ValueError(f"sources.n {self.n} of a split by {self.by}; use 1 or more")


def split(
  records: data.Records, how: Split, seed: int, like: data.Records | None = None
) -> dict[str, str]:
  """id -> the name of its source, in the order of the records.

  `like` are the records whose values make the sources, where these are others, as held-out ones.

  Raises:
    ValueError: a file without some record, more sources than records, a source left empty.
  """
  values = _values(records, how)
  names = list(dict.fromkeys(_values(like, how) if like else values))
  n = how.n or len(names)
  if n > len(names) and n % len(names):
    raise ValueError(
      f"sources.n {n} is no multiple of the {len(names)} values of {how.by}; use one, or at most "
      f"{len(names)}"
    )
  place = {name: i for i, name in enumerate(names)}
  out = {}
  for name, value in zip(records.ids.tolist(), values, strict=True):
    if n > len(names):
      part = int(uniform(seed, "source", name) * (n // len(names)))
      out[name] = f"{slug(value)}-{part}"
    elif n == len(names):
      out[name] = slug(value)
    else:
      out[name] = f"{how.by.partition(':')[0]}-{place[value] % n}"
  found = set(out.values())
  if len(found) < n and not like:
    raise ValueError(
      f"a split of {len(records)} records by {how.by} into {n} sources leaves {n - len(found)} of "
      "them empty; use fewer sources"
    )
  return out


def _values(records: data.Records, how: Split) -> list[str]:
  """What the split goes by, of each record."""
  if how.by.startswith("file:"):
    return _column(records, pathlib.Path(how.by.removeprefix("file:")))
  if how.by == "style" and records.style is None:
    raise ValueError("sources.by is style and the records have none; use folder, class or uniform")
  return {
    "folder": lambda: [name.rpartition("/")[0] or "all" for name in records.ids.tolist()],
    "class": lambda: [records.classes[i] for i in records.label.tolist()],
    "style": lambda: [records.styles[i] for i in np.asarray(records.style).tolist()],
    "uniform": lambda: ["uniform"] * len(records),
  }[how.by]()


def _column(records: data.Records, path: pathlib.Path) -> list[str]:
  try:
    given = parse(path.read_text())
  except OSError as error:
    raise ValueError(f"cannot read {path} ({error}); give a CSV with columns id,source") from error
  missing = [name for name in records.ids.tolist() if name not in given]
  if missing:
    raise ValueError(
      f"{path} has no source for {len(missing)} of {len(records)} records, the first is "
      f"{missing[0]!r}; give each a line"
    )
  return [given[name] for name in records.ids.tolist()]


def parse(text: str, column: str = "id") -> dict[str, str]:
  """id -> source of a CSV text with columns id and source; raises ValueError where it is none."""
  rows = csv.DictReader(io.StringIO(text))
  if not {column, "source"} <= set(rows.fieldnames or ()):
    raise ValueError(f"columns {rows.fieldnames}; give a CSV with columns {column} and source")
  listed = [(row[column], row["source"]) for row in rows]
  twice = [name for name, count in collections.Counter(n for n, _ in listed).items() if count > 1]
  if twice:
    raise ValueError(f"{len(twice)} ids have two sources, the first is {twice[0]!r}; give one each")
  return dict(listed)


def read(path: pathlib.Path) -> dict[str, str]:
  """commitment -> source of RUN/sources.csv.

  Raises:
    ValueError: a source that is no folder's name, or a file of the time before commitments.
  """
  text = path.read_text()
  if text.startswith("id,"):
    raise ValueError(
      f"{path} and the ledger beside it name records; first run `jaxunlearn cdm migrate-ledger "
      f"--run={path.parent}`"
    )
  found = parse(text, COMMITMENT)
  if wrong := [name for name in dict.fromkeys(found.values()) if name != slug(name)]:
    raise ValueError(f"{path} names source {wrong[0]!r}, which no run does; put its copy back")
  return found


def write(path: pathlib.Path, sources: Mapping[str, str], column: str = COMMITMENT) -> None:
  out = io.StringIO()
  rows = csv.writer(out, lineterminator="\n")
  rows.writerow((column, "source"))
  rows.writerows(sources.items())
  writer.replace(path, out.getvalue())


def members(sources: Mapping[str, str]) -> dict[str, list[str]]:
  """source -> its ids, or its commitments; sources in the order of their names."""
  out: dict[str, list[str]] = {name: [] for name in sorted({*sources.values()})}
  for name, source in sources.items():
    out[source].append(name)
  return out


def of_ids(records: data.Records, ids: Sequence[str]) -> data.Records:
  """Those records, in that order; raises ValueError where the data has one no longer."""
  place = {name: i for i, name in enumerate(records.ids.tolist())}
  if lost := [name for name in ids if name not in place]:
    raise ValueError(
      f"{len(lost)} of {len(ids)} records of a source are no longer in the data, the first is "
      f"{lost[0]!r}; restore it, and delete records with `jaxunlearn cdm delete` first"
    )
  return records.take(np.array([place[name] for name in ids], int))


def uniform(seed: int, what: str, name: str) -> float:
  """A number in [0, 1) that follows from all three."""
  digest = hashlib.sha256(f"{seed}/{what}/{name}".encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


def slug(name: str) -> str:
  """A name as that of a folder, within its parent: none begins with a dot."""
  return "-".join(re.findall(r"\w[\w.]*", name.lower())) or "all"
