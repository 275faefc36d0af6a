"""Data: records with ids, and what to delete from them; streams.py makes batches of both.

A source is one module of this folder with a frozen dataclass `Source`, whose `load()` gives
`Records` for training and held-out `Records`. What to delete is data: a list of record ids or
SHA-256 digests, a file of them (one a line), or the name of a class or a style.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxunlearn import errors, plugins

ASSETS = pathlib.Path(__file__).parents[1] / "assets"


@runtime_checkable
class Images(Protocol):
  """uint8 pixels [N, H, W, C] that are read when asked for: files, decoded on demand.

  A NumPy array of pixels serves in its place wherever one is taken.
  """

  @property
  def shape(self) -> tuple[int, int, int, int]: ...

  def __getitem__(self, index: np.ndarray) -> np.ndarray:
    """The pixels [n, H, W, C] of the rows `index` [n]."""
    ...

  def select(self, index: np.ndarray) -> "Images":
    """The images of those rows, unread."""
    ...

  def sha256(self, index: np.ndarray) -> list[str]:
    """The digests of those rows' files."""
    ...


@dataclasses.dataclass(frozen=True)
class Records:
  """Images with their ids; `image` is uint8 [N, H, W, C], in memory or read on demand."""

  ids: np.ndarray  # [N] str, unique
  image: np.ndarray | Images
  label: np.ndarray  # [N] int32, into classes
  classes: tuple[str, ...]
  style: np.ndarray | None = None  # [N] int32, into styles; None: of one style
  styles: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    dtype = self.image.dtype if isinstance(self.image, np.ndarray) else np.uint8
    if len(self.image.shape) != 4 or dtype != np.uint8:
      raise ValueError(
        f"images are {dtype} {self.image.shape}; give uint8 [N, H, W, C], all of one size"
      )
    if not len(self.ids) == self.image.shape[0] == len(self.label):
      raise ValueError(
        f"{len(self.ids)} ids, {self.image.shape[0]} images and {len(self.label)} labels; "
        "give one of each per record"
      )
    if self.style is not None and len(self.style) != len(self.ids):
      raise ValueError(f"{len(self.style)} styles of {len(self.ids)} records; give one of each")
    if len(np.unique(self.ids)) < len(self.ids):
      raise ValueError("ids repeat; give each record an id of its own")

  def __len__(self) -> int:
    return len(self.ids)

  def take(self, index: np.ndarray) -> "Records":
    """Those records; images that are read on demand stay unread."""
    pixels = self.image
    image = pixels[index] if isinstance(pixels, np.ndarray) else pixels.select(index)
    style = None if self.style is None else self.style[index]
    label = self.label[index]
    return dataclasses.replace(self, ids=self.ids[index], image=image, label=label, style=style)

  @property
  def conditions(self) -> np.ndarray:
    """What a conditional model is told of each: int32 [N] classes, or [N, 2] classes and styles."""
    columns = [self.label] if self.style is None else [self.label, self.style]
    return np.stack(columns, axis=-1).astype(np.int32)[..., 0 if len(columns) == 1 else slice(None)]

  @property
  def vocabulary(self) -> tuple[tuple[str, ...], ...]:
    """The names of each condition's values: the classes, and the styles where there are any."""
    return (self.classes,) if self.style is None else (self.classes, self.styles)

  def chunks(self, size: int) -> Iterator[np.ndarray]:
    """All pixels in order, `size` records at a time."""
    for start in range(0, len(self), size):
      yield self.image[np.arange(start, min(start + size, len(self)))]

  def sha256(self) -> np.ndarray:
    """[N] str: the SHA-256 of each record's file, or of its pixels where it has none."""
    if not isinstance(self.image, np.ndarray):
      return np.array(self.image.sha256(np.arange(len(self))), dtype=str)
    return np.array([hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in self.image], str)

  def fingerprint(self) -> str:
    """A hash of every id, label and picture."""
    digest = hashlib.sha256("\n".join(self.ids).encode())
    digest.update(np.ascontiguousarray(self.label).tobytes())
    if self.style is not None:
      digest.update(np.ascontiguousarray(self.style).tobytes())
    digest.update(f"{self.image.shape}".encode())
    digest.update("".join(self.sha256()).encode())
    return digest.hexdigest()[:16]


def concatenate(parts: Sequence[Records]) -> Records:
  """Records of several origins in memory, in one set; raises ValueError for mixed sizes."""
  check_one_size({part.image.shape[1:] for part in parts})
  classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
  relabel = lambda p: np.array([classes.index(name) for name in p.classes], np.int32)[p.label]
  if len({part.styles for part in parts}) > 1:
    raise ValueError(f"records of styles {sorted({p.styles for p in parts})}; give all the same")
  styled = parts[0].style is not None
  return Records(
    ids=np.concatenate([p.ids for p in parts]),
    image=np.concatenate([p.image for p in parts]),
    label=np.concatenate([relabel(p) for p in parts]),
    classes=classes,
    style=np.concatenate([p.style for p in parts]) if styled else None,
    styles=parts[0].styles,
  )


def check_one_size(shapes: set[tuple[int, ...]]) -> None:
  if len(shapes) > 1:
    raise ValueError(f"images of mixed sizes {sorted(shapes)}; resize them to one size first")


def to_model(image: np.ndarray) -> np.ndarray:
  """uint8 pixels -> float32 in [-1, 1]."""
  return image.astype(np.float32) / 127.5 - 1


def to_pixels(image: np.ndarray) -> np.ndarray:
  """[-1, 1] -> uint8 pixels; what is outside is clipped, and NaN is black."""
  return np.rint(np.clip(np.nan_to_num(image, nan=-1) + 1, 0, 2) * 127.5).astype(np.uint8)


def load(source: str, **fields: Any) -> tuple[Records, Records]:
  """(training, held-out) records of the source of that module name, its fields from the config.

  Raises:
    ValueError: no such source, or a field it does not take; the choices are listed.
  """
  return make(source, **fields).load()


def make(source: str, **fields: Any) -> Any:
  """`data/folder.py` is named 'folder'; its fields are those of its `Source`."""
  return errors.build(CHOICES.module(source).Source, f"data source {source}", fields)


CHOICES = plugins.Group(__name__, "data source", "Source")
names = CHOICES.names


SHA256 = "sha256:"


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


@dataclasses.dataclass(frozen=True)
class Forget:
  """What to delete: exactly one of ids, file, label and style; all empty where nothing is.

  `sha256:HEX` stands for every record of that digest: all copies of a file.
  """

  ids: tuple[str, ...] = ()
  file: str = ""  # a text file with one id or sha256:HEX a line
  label: str = ""  # every record of this class
  style: str = ""  # every record of this style
  earlier: tuple[str, ...] = ()  # what runs before this one deleted: no longer in the set

  def remaining(self, records: Records) -> Records:
    """The records without those that were deleted earlier.

    Raises:
      ValueError: an id that does not exist, or none that remains.
    """
    gone = _find(self.earlier, records)
    if gone.all():
      raise ValueError(f"forget.earlier selects all {len(records)} records; keep at least one")
    return records.take(np.flatnonzero(~gone)) if gone.any() else records

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
      mask = _find(self._listed(), records)
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

  def _listed(self) -> Sequence[str]:
    if not self.file:
      return self.ids
    path = pathlib.Path(self.file)
    if not path.is_file():
      raise ValueError(f"forget.file {self.file!r} is not a file; give one record id a line")
    ids = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not ids:
      raise ValueError(f"forget.file {self.file!r} is empty; give one record id a line")
    return ids


def named(records: Records, kind: str, name: str) -> Concept:
  """The class or style of that name; raises ValueError with the names where there is none."""
  names = records.classes if kind == "class" else records.styles
  errors.check_choice(kind, name, names)
  return Concept(int(kind == "style"), names.index(name))


def _find(ids: Sequence[str], records: Records) -> np.ndarray:
  """[N] bool: the records of those ids or digests; raises ValueError where one does not exist."""
  wanted = {name.removeprefix(SHA256) for name in ids if name.startswith(SHA256)}
  known = records.sha256() if wanted else np.empty(0, str)
  lost = sorted(wanted - set(known.tolist()))
  if lost:
    raise ValueError(
      f"{len(lost)} of {len(wanted)} digests to forget are of no record, the first is "
      f"'{SHA256}{lost[0]}'; give the SHA-256 of the file (of the pixels for embedded data)"
    )
  plain = [name for name in ids if not name.startswith(SHA256)]
  missing = sorted(set(plain) - set(records.ids.tolist()))
  if missing:
    raise ValueError(
      f"{len(missing)} of {len(ids)} ids to forget do not exist, the first is {missing[0]!r}"
      f"{errors.nearest(missing[0], records.ids.tolist())}; ids look like '{records.ids[0]}'"
    )
  mask = np.isin(records.ids, plain)
  return mask | np.isin(known, list(wanted)) if wanted else mask
