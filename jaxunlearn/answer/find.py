"""Which records a request means: by id, by digest, by a list, or by a picture.

A picture is a record where its file, or its pixels at the size of the data, are the record's byte
for byte. Where they are not, it may be a copy that was cropped or saved again: such records are
listed and none is taken until the request confirms it by its id.
"""

import csv
import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import data
from jaxunlearn.answer import likeness
from jaxunlearn.data import forget, ids, pixels
from jaxunlearn.data.walk import listed
from jaxunlearn.reports import pictures, writer

LIST, GRID = "candidates.csv", "candidates.png"
BY_NAME, BY_FILE, BY_PIXELS, BY_LIKENESS = "name", "file", "pixels", "likeness, confirmed"
SHOWN = 5  # records that a picture may be
BY_COPY = "byte copy"  # of a record that was found in another way


@dataclasses.dataclass(frozen=True)
class Request:
  """What a person names: see the flags of __main__.py."""

  ids: tuple[str, ...] = ()
  files: tuple[pathlib.Path, ...] = ()  # lists, one id or sha256:HEX a line
  pictures: tuple[pathlib.Path, ...] = ()
  confirm: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if not (self.ids or self.files or self.pictures):
      raise ValueError("the request names nothing; give --ids, --files or --pictures")


class Found(NamedTuple):
  """A record that the request means."""

  id: str
  by: str  # one of BY_...
  source: str  # the name or the picture that was given


class Unclear(ValueError):
  """A picture is like records and is none; carries them, to be listed."""

  def __init__(self, text: str, candidates: "Sequence[Candidate]"):
    super().__init__(text)
    self.candidates = candidates


class Candidate(NamedTuple):
  """A record that a picture may be."""

  picture: str
  id: str
  bits: int  # of 63 that differ in their looks
  distance: float  # root mean square of pixels in [0, 1]


def find(
  request: Request, train: data.Records, heldout: data.Records, source: Any = None
) -> list[Found]:
  """The records of the training data that are meant, each once.

  Args:
    source: the data source, which says how a file becomes pixels.

  Raises:
    Unclear: a picture is like records and no `confirm` says which.
    ValueError: a name, list or picture that is no record's.
  """
  names = list(request.ids)
  for path in request.files:
    names += ids.read(path.expanduser(), "--files")
  _check_heldout(names, heldout)
  out = {name: Found(name, BY_NAME, name) for name in _named(names, train)}
  offered: set[str] = set()
  open_ones: list[tuple[str, list[Candidate]]] = []
  for path in request.pictures:
    exact, maybe = of_picture(path, train, source)
    chosen = [one for one in maybe if one.id in request.confirm]
    offered |= {one.id for one in maybe}
    for found in (*exact, *(Found(one.id, BY_LIKENESS, str(path)) for one in chosen)):
      out.setdefault(found.id, found)
    if not exact and not chosen:
      open_ones.append((str(path), maybe))
  if unknown := sorted(set(request.confirm) - offered):
    raise ValueError(
      f"--confirm names {unknown[0]!r}, which no picture of the request was likened to; confirm "
      f"one of: {listed(sorted(offered)) or 'none was'}"
    )
  if open_ones:
    raise _unclear(open_ones)
  return [*out.values(), *_with_copies(list(out), train)]


def _with_copies(found: Sequence[str], train: data.Records) -> list[Found]:
  """The byte copies of records that are not among them."""
  mask = np.isin(train.ids, list(found))
  return [Found(name, BY_COPY, "") for name in train.ids[train.copies(mask)].tolist()]


def _named(names: Sequence[str], train: data.Records) -> list[str]:
  return train.ids[forget.find(names, train)].tolist() if names else []


def _check_heldout(names: Sequence[str], heldout: data.Records) -> None:
  """Raises ValueError where a name is a held-out record's: no model was trained on it."""
  aside = sorted(set(names) & set(heldout.ids.tolist()))
  if aside:
    raise ValueError(
      f"{aside[0]!r} is held out: this run was not trained on it. Delete its file from the data; "
      "the model has nothing to forget"
    )


def of_picture(
  path: pathlib.Path, train: data.Records, source: Any = None
) -> tuple[list[Found], list[Candidate]]:
  """The records that a picture is, and, where it is none, those that it is like.

  Raises:
    ValueError: no picture there.
  """
  try:
    raw = path.expanduser().read_bytes()
    picture = _decoded(raw, train.image.shape[1:], getattr(source, "resize", "bicubic"))
  except Exception as error:  # PIL documents no list of what a bad file raises
    raise ValueError(
      f"picture {str(path)!r} cannot be read ({pixels.reason(error)}); give a JPEG, PNG or WebP"
    ) from error
  digest = hashlib.sha256(raw).hexdigest()
  if not isinstance(train.image, np.ndarray):
    same = np.flatnonzero(train.sha256() == digest).tolist()
    if same:  # its copies are found as those of any record
      return [Found(train.ids[same[0]].item(), BY_FILE, str(path))], []
  near = likeness.like(picture, train, most=likeness.FIRST)
  equal = [one.place for one in near if not one.distance and _same(picture, train, one.place)]
  if equal:
    return [Found(train.ids[min(equal)].item(), BY_PIXELS, str(path))], []
  distinct = _distinct(near, train)[:SHOWN]
  name = lambda one: train.ids[one.place].item()
  return [], [Candidate(str(path), name(one), one.bits, one.distance) for one in distinct]


def _distinct(near: Sequence[likeness.Like], train: data.Records) -> list[likeness.Like]:
  """The first of those that are one picture: its copies go with it."""
  if not near:
    return []
  images = train.image[np.array([one.place for one in near])]
  _, first = np.unique(images, axis=0, return_index=True)
  return [near[i] for i in sorted(first.tolist())]


def _decoded(raw: bytes, shape: tuple[int, ...], resize: str) -> np.ndarray:
  """uint8 [H, W, C] of a picture file, as the data has its own."""
  with pixels.opened(io.BytesIO(raw)) as (image, bits):
    return pixels.square(image, bits, pixels.MODES[shape[-1]], shape[0], resize)


def _same(picture: np.ndarray, train: data.Records, place: int) -> bool:
  return bool(np.array_equal(picture, train.image[np.array([place])][0]))


def _unclear(open_ones: list[tuple[str, list[Candidate]]]) -> ValueError:
  """What to say of the first picture that is no record."""
  picture, maybe = open_ones[0]
  more = f" ({len(open_ones) - 1} more pictures are not clear)" if len(open_ones) > 1 else ""
  if not maybe:
    return ValueError(
      f"picture {picture!r} is no record of this run, and like none{more}; give the id of its "
      "record, or a copy that is less changed"
    )
  names = [f"{one.id!r} ({one.bits} of 63 bits differ)" for one in maybe]
  what = "1 record" if len(maybe) == 1 else f"{len(maybe)} records"
  text = (
    f"picture {picture!r} is no record, but is like {what}: {listed(names, str)}{more}; look at "
    f"them, and confirm what is meant by --confirm={maybe[0].id}, or give its id"
  )
  return Unclear(text, [one for _, several in open_ones for one in several])


def write_candidates(
  out: pathlib.Path, candidates: Sequence[Candidate], train: data.Records, source: Any = None
) -> None:
  """OUT/candidates.csv, and a picture of them: a row each, the given picture first."""
  rows = [",".join(Candidate._fields)]
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(candidates)
  writer.replace(out / LIST, "\n".join([*rows, text.getvalue()]))
  place = {name: i for i, name in enumerate(train.ids.tolist())}
  resize = getattr(source, "resize", "bicubic")
  shown = []
  for one in candidates:
    raw = pathlib.Path(one.picture).expanduser().read_bytes()
    shown.append(_decoded(raw, train.image.shape[1:], resize))
    shown.append(train.image[np.array([place[one.id]])][0])
  pictures.write_grid(out / GRID, data.to_model(np.stack(shown)), columns=2)
