"""What to delete from records: single ones, by id, digest or a list of them, a class or a style.

An id stands for its record and for every byte copy of it, so that no copy stays by an oversight.
What only looks like a record to delete is named and stays.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from absl import logging

from jaxunlearn import errors
from jaxunlearn.data import ids, looks
from jaxunlearn.data.records import Records
from jaxunlearn.data.walk import listed
from jaxunlearn.inputs import ranges

COPIES = ("forget", "keep")
LIKE = 3  # near copies that a line names


class Concept(NamedTuple):
  """A class or a style to unlearn: the value that one of the conditions has."""

  column: int  # which condition: 0 the class, 1 the style
  value: int

  def matches(self, c: np.ndarray) -> np.ndarray:
    """[N] bool: which of the conditions [N] or [N, n] are of it."""
    return c.reshape(len(c), -1)[:, self.column] == self.value

  def put(self, c: np.ndarray, value: Any = None) -> np.ndarray:
    """The conditions with its value, or another one, in its column."""
    out = c.reshape(len(c), -1).copy()
    out[:, self.column] = self.value if value is None else value
    return out.reshape(c.shape)


ASIDE = {"earlier": "deleted earlier", "later": "to be deleted later"}  # fields of `Forget`


@dataclasses.dataclass(frozen=True)
class Forget:
  """What to delete: exactly one of ids, file, label and style; all empty where nothing is.

  `sha256:HEX` stands for every record of that digest, as an id does for all copies of its file.
  """

  ids: tuple[str, ...] = ()
  file: str = ""  # a text file with one id or sha256:HEX a line
  label: str = ""  # every record of this class
  style: str = ""  # every record of this style
  earlier: tuple[str, ...] = ()  # what runs before this one deleted: no longer in the set
  later: tuple[str, ...] = ()  # what runs after it are to delete: not in the set either
  copies: str = "forget"  # of single records, byte for byte: forget them as well, or keep
  # Bits of 63 in which the look of a kept picture may differ from one to delete before it is named
  # as a near copy; -1: none is looked for.
  near: Annotated[int, ranges.Range(-1.0, 63.0, whole=True)] = 6

  def __post_init__(self) -> None:
    for field in ("ids", *ASIDE):
      object.__setattr__(self, field, ids.as_ids(f"forget.{field}", getattr(self, field)))
    errors.check_choice("way with byte copies", self.copies, COPIES)
    ranges.check(self)

  def remaining(self, records: Records) -> Records:
    """The records without those that were deleted earlier, or are to be later.

    Raises:
      ValueError: an id that does not exist, or none that remains.
    """
    gone = {
      field: self._with_copies(find(getattr(self, field), records), records) for field in ASIDE
    }
    out = np.logical_or(*gone.values())
    if out.all():
      raise ValueError(
        f"forget.earlier and later select all {len(records)} records; keep at least one"
      )
    if not out.any():
      return records
    left = records.take(np.flatnonzero(~out))
    aside = {
      name: f"{ASIDE[field]}: forget.{field}"
      for field, mask in gone.items()
      for name in records.ids[mask].tolist()
    }
    return dataclasses.replace(left, aside={**left.aside, **aside})

  def mask(self, records: Records) -> np.ndarray:
    """[N] bool: the records to delete.

    Raises:
      ValueError: more than one way given, an id or class that does not exist, or a set that
        leaves nothing to forget or nothing to keep.
    """
    given = [name for name in ("ids", "file", "label", "style") if getattr(self, name)]
    if len(given) > 1:
      raise ValueError(
        f"forget has both {' and '.join(given)}; give one of ids, file, label, style"
      )
    if concept := self.concept(records):
      mask = concept.matches(records.conditions)
    else:
      mask = self._with_copies(find(self._listed(), records), records)
    if given and not mask.any():
      raise ValueError(f"forget.{given[0]} selects no record; name at least one to delete")
    if mask.all():
      raise ValueError(f"forget selects all {len(records)} records; keep at least one")
    return mask

  def concept(self, records: Records) -> Concept | None:
    """The class or style to delete; None where it is single records, or nothing.

    Raises:
      ValueError: a class or style that does not exist.
    """
    if self.label:
      return named(records, "class", self.label)
    return named(records, "style", self.style) if self.style else None

  def warn_of_likes(self, records: Records, mask: np.ndarray) -> None:
    """Names what stays and is, or looks like, a picture to delete."""
    if self.label or self.style:
      same = records.ids[records.copies(mask)].tolist()
      if same:
        what = f"class {self.label}" if self.label else f"style {self.style}"
        logging.warning("kept: %s of pictures of the %s: %s", _copies(same), what, listed(same))
    elif near := self._near(records, mask):
      pairs = [f"{a!r} (like {b!r}, {n} of {looks.BITS} bits)" for a, b, n in near[:LIKE]]
      logging.warning(
        "%d kept image%s like one to forget: %s%s; add them to config.forget.ids if they are "
        "copies, or set config.forget.near=-1 to look for none",
        *(len(near), " looks" if len(near) == 1 else "s look", ", ".join(pairs)),
        f" and {len(near) - LIKE} more" if len(near) > LIKE else "",
      )

  def _near(self, records: Records, mask: np.ndarray) -> list[tuple[str, str, int]]:
    """(kept, to delete, bits): the near copies that stay, without byte copies."""
    if self.near < 0 or not mask.any() or (seen := records.looks()) is None:
      return []
    same = records.copies(mask)
    found = looks.near(seen, mask, self.near)
    name = records.ids.tolist()
    return [(name[a], name[b], bits) for a, b, bits in found if not same[a]]

  def _with_copies(self, mask: np.ndarray, records: Records) -> np.ndarray:
    """The mask with the byte copies of its records, unless they are to be kept; says which."""
    copies = records.copies(mask) if mask.any() else mask
    if not copies.any():
      return mask
    names = records.ids[copies].tolist()
    if self.copies == "keep":
      logging.warning(
        "kept, as config.forget.copies=keep says: %s of forgotten records: %s",
        *(_copies(names), listed(names)),
      )
      return mask
    logging.warning(
      "also forgotten: %s of records that config.forget names: %s; "
      "config.forget.copies=keep keeps %s",
      *(_copies(names), listed(names), "it" if len(names) == 1 else "them"),
    )
    return mask | copies

  def _listed(self) -> Sequence[str]:
    if not self.file:
      return self.ids
    return ids.read(pathlib.Path(self.file).expanduser(), "forget.file")


def named(records: Records, kind: str, name: str) -> Concept:
  """The class or style of that name; raises ValueError with the names where there is none."""
  names = records.classes if kind == "class" else records.styles
  errors.check_choice(kind, name, names)
  return Concept(int(kind == "style"), names.index(name))


def find(wanted: Sequence[str], records: Records) -> np.ndarray:
  """[N] bool: the records of those ids or digests; raises ValueError where one does not exist."""
  own = set(records.ids.tolist()) if wanted else set()
  other = [name for name in dict.fromkeys(wanted) if name not in own]
  digests = {hexadecimal for name in other if (hexadecimal := ids.digest(name))}
  paths = _resolved([name for name in other if not ids.digest(name)], records)
  if missing := sorted(name for name, found in paths.items() if not found):
    raise ValueError(_missing(missing, len(set(wanted)), records))
  mask = np.isin(records.ids, [name for name in wanted if name in own] + list(paths.values()))
  return mask | _of_digests(digests, records) if digests else mask


def _of_digests(digests: set[str], records: Records) -> np.ndarray:
  known = records.sha256()
  if lost := sorted(digests - set(known.tolist())):
    raise ValueError(
      f"{len(lost)} of {len(digests)} digests to forget belong to no record, the first is "
      f"'{ids.SHA256}{lost[0]}'; give the SHA-256 of the file (of the pixels for embedded data)"
    )
  return np.isin(known, list(digests))


def _resolved(names: Sequence[str], records: Records) -> dict[str, str]:
  """The id of the record that each name means in another writing; "" where there is none.

  Raises:
    ValueError: a name that means two records, whose ids differ in Unicode's normal form alone.
  """
  if not names:
    return {}
  known: dict[str, list[str]] = {}
  for name in records.ids.tolist():
    known.setdefault(ids.composed(name), []).append(name)
  out = {}
  for name in names:
    found = next((known[f] for f in ids.forms(name, records.folder) if f in known), [""])
    if len(found) > 1:
      raise ValueError(
        f"{name!r} means {len(found)} records, whose names differ in Unicode's normal form: "
        f"{', '.join(map(ascii, found))}; name one by its digest, sha256:HEX"
      )
    out[name] = found[0]
  return out


def _missing(names: Sequence[str], count: int, records: Records) -> str:
  """Says that no record to train on has these ids, with what is known of the first."""
  first, some = names[0], len(names)
  head = f"{some} of {count} ids to forget do not exist, the first is {first!r}"
  for form in (first, *ids.forms(first, records.folder)):
    if why := records.aside.get(form):
      return (
        f"{some} of {count} ids to forget are not trained on, the first is {first!r} "
        f"({why}); take it out of config.forget, or change that"
      )
    if records.folder and (pathlib.Path(records.folder) / form).exists():
      return f"{head}: a file has that name, but it is not read as an image; name an image"
  parts = first.split(",")
  if len(parts) > 1 and all(_resolved(parts, records).values()):
    return f"{head}; write several ids as {tuple(parts)!r}"
  own = records.ids.tolist()
  folded = ids.composed(first).casefold()
  near = [name for name in own if ids.composed(name).casefold() == folded] or own
  return (
    f"{head}{errors.nearest(first, near) or errors.nearest(folded, near)}; ids look like {own[0]!r}"
  )


def _copies(names: Sequence[str]) -> str:
  return "1 byte copy" if len(names) == 1 else f"{len(names)} byte copies"
