"""Records: images with ids, labels and styles, in memory or read when asked for."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from jaxunlearn.data import looks


@runtime_checkable
class Images(Protocol):
  """uint8 pixels [N, H, W, C] that are read when asked for: files, decoded on demand.

  A NumPy array of pixels serves in its place wherever one is taken.
  """

  @property
  def shape(self) -> tuple[int, int, int, int]: ...

  @property
  def folder(self) -> str:
    """Where the files lie: ids are paths in it."""
    ...

  def __getitem__(self, index: np.ndarray) -> np.ndarray:
    """The pixels [n, H, W, C] of the rows `index` [n]."""
    ...

  def select(self, index: np.ndarray) -> "Images":
    """The images of those rows, unread."""
    ...

  def sha256(self, index: np.ndarray) -> list[str]:
    """The digests of those rows' files."""
    ...

  def stamps(self, index: np.ndarray) -> list[str]:
    """What tells that a file changed: its digest where that is known, or else its size."""
    ...

  def looks(self, index: np.ndarray) -> np.ndarray | None:
    """What looks.py gives for those rows' pixels, uint64 [n]; None where they were not read."""
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
  aside: Mapping[str, str] = dataclasses.field(default_factory=dict)  # id of no record -> why not
  also: np.ndarray | None = None  # [N, K] int32: the labels that views of each have in turn

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
    if self.also is not None and len(self.also) != len(self.ids):
      raise ValueError(
        f"{len(self.also)} lists of labels of {len(self.ids)} records; give one each"
      )
    if len(np.unique(self.ids)) < len(self.ids):
      raise ValueError("ids repeat; give each record an id of its own")

  def __len__(self) -> int:
    return len(self.ids)

  def take(self, index: np.ndarray) -> "Records":
    """Those records; images that are read on demand stay unread."""
    pixels = self.image
    image = pixels[index] if isinstance(pixels, np.ndarray) else pixels.select(index)
    style = None if self.style is None else self.style[index]
    label, also = self.label[index], None if self.also is None else self.also[index]
    return dataclasses.replace(
      self, ids=self.ids[index], image=image, label=label, style=style, also=also
    )

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

  def stamps(self) -> np.ndarray:
    """[N] str: what tells cheaply that a record's picture changed; equal for byte copies."""
    if isinstance(self.image, np.ndarray):
      return self.sha256()
    return np.array(self.image.stamps(np.arange(len(self))), dtype=str)

  def copies(self, mask: np.ndarray) -> np.ndarray:
    """[N] bool: the records outside the mask whose file is byte for byte one inside."""
    stamps = self.stamps()
    maybe = np.flatnonzero(np.isin(stamps, stamps[mask]))
    digests = self.take(maybe).sha256()
    out = np.zeros(len(self), bool)
    out[maybe] = np.isin(digests, digests[mask[maybe]])
    return out & ~mask

  def looks(self) -> np.ndarray | None:
    """uint64 [N], what looks.py gives for each picture; None where none was read."""
    if not isinstance(self.image, np.ndarray):
      return self.image.looks(np.arange(len(self)))
    parts = [looks.looks(pixels) for pixels in self.chunks(1024)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)

  @property
  def folder(self) -> str:
    """Where the files lie; "" for pixels in memory."""
    return "" if isinstance(self.image, np.ndarray) else self.image.folder

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
    aside={name: why for p in parts for name, why in p.aside.items()},
  )


def check_one_size(shapes: set[tuple[int, ...]]) -> None:
  if len(shapes) > 1:
    raise ValueError(f"images of mixed sizes {sorted(shapes)}; resize them to one size first")
