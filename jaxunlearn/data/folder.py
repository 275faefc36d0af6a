"""A folder of JPEG, PNG and WebP files of any size, decoded when a batch is read.

A record's id is its path in the folder (`faces/00001.jpg`), its class the first folder of that path
(`.` for files at the top); in the layout `style/class` the first folder is the style, and the
second the class. Records are in the order of their ids, the same on every machine. An image is
turned as its EXIF says, cropped to the centre square and resized with antialiasing, as PIL does:
pixels.py. Which files are read stands in walk.py.

Every file is checked once at the start, and what cannot be read is named. Held in memory: the ids,
the labels, and of each file its size and, where it was read, its digest and its look.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import pathlib
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from jaxunlearn import data, errors, weights
from jaxunlearn.data import looks, pixels, walk
from jaxunlearn.data.pixels import MODES
from jaxunlearn.inputs import ranges

RESIZE = ("bicubic", "lanczos", "box", "bilinear")
LAYOUTS = ("class", "style/class")
TOP = "."  # the class of files in no folder: a name that no folder can have
NAMED = 3  # bad files that an error names
FACTS = [("bytes", np.int64), ("sha256", "S64"), ("look", np.uint64)]  # of each file


class Checked(NamedTuple):
  """What the check at the start found of a file."""

  why: str = ""  # it cannot be used; "" where it can
  small: bool = False  # smaller than `size`
  animated: bool = False
  bytes: int = 0
  sha256: str = ""  # "" where headers alone were read
  look: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
  path: str = ""  # the folder
  layout: str = "class"  # what its folders are: classes, or style/class: classes in each style
  size: ranges.Count = 256  # pixels a side
  channels: ranges.Count = 3  # 3 or 1
  heldout: ranges.From0 = 0  # one file in this many is held out; 0: none
  resize: str = "bicubic"
  convert: bool = False  # other modes too, alpha over white; False: they are bad input
  unreadable: str = "stop"  # or skip: go on without the files that cannot be used
  threads: ranges.Count = 16
  verify: bool = True  # decode all files at the start; False: headers, and damage stops the run

  def load(self) -> tuple[data.Records, data.Records]:
    """(training, held-out) records; the split and the labels do not depend on what is skipped.

    Raises:
      ValueError: a field, folder or file that cannot be used, in one line.
    """
    self._check_fields()
    root = pathlib.Path(self.path).expanduser()
    names = walk.find(root)
    mine = np.arange(len(names)) % max(self.heldout, 1) == self.heldout - 1
    if self.heldout and not mine.any():
      raise ValueError(
        f"config.data.heldout is {self.heldout} and {root} has {len(names)} images, so that none "
        f"is held out; use 0, or 2 to {len(names)}"
      )
    checked = threaded(lambda name: self._check(root, name), names, self.threads, "check images")
    self._report(root, names, checked)
    usable = np.array([not one.why for one in checked])
    if not (usable & ~mine).any():
      raise ValueError(f"none of the {len(names)} images in {root} is left to train on; add some")
    records = self._records(root, names, checked)
    return records.take(np.flatnonzero(usable & ~mine)), records.take(np.flatnonzero(usable & mine))

  def decode(self, path: pathlib.Path) -> np.ndarray:
    """The file's pixels, uint8 [size, size, channels]; raises what PIL raises."""
    with path.open("rb") as file, pixels.opened(file) as (image, bits):
      return self._pixels(image, bits)

  def _check_fields(self) -> None:
    if not self.path:
      raise ValueError("config.data.path is empty; set it to the folder of images")
    errors.check_choice("layout of a folder", self.layout, LAYOUTS)
    errors.check_choice("resize filter", self.resize, RESIZE)
    errors.check_choice("way with unreadable images", self.unreadable, ("stop", "skip"))
    if self.channels not in MODES:
      raise ValueError(f"config.data.channels is {self.channels}; use 3 (RGB) or 1 (grey)")
    if self.heldout == 1:
      raise ValueError("config.data.heldout is 1; use 0 for none, or 2 or more")

  def _report(self, root: pathlib.Path, names: Sequence[str], checked: Sequence[Checked]) -> None:
    """Names the files that cannot be used, that are enlarged, and that are animations.

    Raises:
      ValueError: a file cannot be used and the run is to stop.
    """
    found = list(zip(names, checked, strict=True))
    bad = [(name, one.why) for name, one in found if one.why]
    if bad and self.unreadable == "stop":
      first = ", ".join(f"{name!r} ({why})" for name, why in bad[:NAMED])
      raise ValueError(
        f"{len(bad)} of {len(names)} images in {root} cannot be used: {first}"
        f"{', ...' if len(bad) > NAMED else ''}; repair or remove them, or set config.data."
        "unreadable=skip to go on without them, or config.data.convert=True for other modes"
      )
    for name, why in bad:
      logging.warning("left out: %r (%s)", name, why)
    if bad:
      logging.warning("%d of %d images in %s are left out", len(bad), len(names), root)
    if small := [name for name, one in found if one.small]:
      logging.warning(
        "%d of %d images are smaller than %d px and are enlarged, the first is %r",
        *(len(small), len(names), self.size, small[0]),
      )
    if moving := [name for name, one in found if one.animated]:
      logging.warning(
        "%d of %d images are animations, of which the first frame is read: %s",
        *(len(moving), len(names), walk.listed(moving)),
      )

  def _check(self, root: pathlib.Path, name: str) -> Checked:
    """What a file is, and whether it can be used."""
    try:
      _check_name(name)
      status = (root / name).stat()
      if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError("not a regular file")
      if self.verify:
        return self._verified((root / name).read_bytes())
      with (root / name).open("rb") as file, pixels.opened(file) as (image, _):
        self._check_mode(image)
        return Checked("", self._is_small(image), pixels.animated(image), status.st_size)
    except Exception as error:  # PIL documents no list of what a bad file raises
      return Checked(pixels.reason(error))

  def _verified(self, raw: bytes) -> Checked:
    """As _check, of a file's bytes; raises what PIL raises."""
    with pixels.opened(io.BytesIO(raw)) as (image, bits):
      small, animated = self._is_small(image), pixels.animated(image)
      look = looks.looks(self._pixels(image, bits)[None])
    return Checked("", small, animated, len(raw), hashlib.sha256(raw).hexdigest(), int(look[0]))

  def _is_small(self, image: Image.Image) -> bool:
    return min(image.size) < self.size

  def _check_mode(self, image: Image.Image) -> None:
    if not self.convert:
      pixels.check_mode(image, MODES[self.channels])

  def _pixels(self, image: Image.Image, bits: int) -> np.ndarray:
    self._check_mode(image)
    return pixels.square(image, bits, MODES[self.channels], self.size, self.resize)

  def _records(
    self, root: pathlib.Path, names: Sequence[str], checked: Sequence[Checked]
  ) -> data.Records:
    folders = [name.split("/")[:-1] or [TOP] for name in names]
    ids, styled = np.array(names), self.layout == "style/class"
    if styled and (stray := [n for n, f in zip(names, folders, strict=True) if len(f) < 2]):
      raise ValueError(
        f"{len(stray)} of {len(names)} images in {root} are in no style/class folder, the first is "
        f"{stray[0]!r}; move it to one, or set config.data.layout=class"
      )
    label, classes = numbered([path[int(styled)] for path in folders])
    style, styles = numbered([path[0] for path in folders]) if styled else (None, ())
    facts = np.array([(one.bytes, one.sha256, one.look) for one in checked], FACTS)
    images = FolderImages(root, ids, self, facts)
    aside = {n: f"left out: {one.why}" for n, one in zip(names, checked, strict=True) if one.why}
    return data.Records(ids, images, label, classes, style, styles, aside)


@dataclasses.dataclass(frozen=True)
class FolderImages:
  """data.Images of the files `names` in the folder `root`."""

  root: pathlib.Path
  names: np.ndarray  # [N] str
  source: Source
  facts: np.ndarray  # [N] of FACTS

  @property
  def folder(self) -> str:
    return str(self.root)

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return (len(self.names), self.source.size, self.source.size, self.source.channels)

  @property
  def decoding(self) -> str:
    """How a file becomes pixels of that shape: two sets of the same files may differ in it."""
    return self.source.resize + "+convert" * self.source.convert

  def __getitem__(self, index: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, C]; a file that `index` repeats is decoded once.

    Raises:
      ValueError: a file that can no longer be read.
    """
    names, place = np.unique(self.names[index], return_inverse=True)
    pixels = self._each(self.source.decode, names)
    return np.array(pixels, np.uint8).reshape(-1, *self.shape[1:])[place]

  def select(self, index: np.ndarray) -> "FolderImages":
    return dataclasses.replace(self, names=self.names[index], facts=self.facts[index])

  def sha256(self, index: np.ndarray) -> list[str]:
    """The digests of the files' bytes; raises ValueError as reading does."""
    if self.source.verify:
      return [known.decode() for known in self.facts["sha256"][index].tolist()]
    return self._each(weights.sha256, self.names[index], "hash images")

  def stamps(self, index: np.ndarray) -> list[str]:
    if self.source.verify:
      return self.sha256(index)
    return [f"{size} bytes" for size in self.facts["bytes"][index].tolist()]

  def looks(self, index: np.ndarray) -> np.ndarray | None:
    return self.facts["look"][index] if self.source.verify else None

  def _each(self, work: Callable[[pathlib.Path], Any], names: np.ndarray, desc: str = "") -> list:
    attempt = lambda name: _attempt(work, self.root / name)
    return threaded(attempt, names.tolist(), self.source.threads, desc)


def numbered(values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
  """The place [N] of each value among the distinct ones, sorted; and these."""
  names, place = np.unique(np.array(values), return_inverse=True)
  return place.astype(np.int32), tuple(names.tolist())


def _check_name(name: str) -> None:
  """Raises ValueError for a name that no list of ids can hold: one id a line, in UTF-8."""
  name.encode()
  if name.splitlines() != [name] or name != name.strip():
    raise ValueError("its name has a line break, or a blank at an end; rename it")


def threaded(work: Callable[[str], Any], items: Sequence[str], threads: int, desc: str) -> list:
  """`work` of each item, in order, in a pool of threads; with a `desc`, a progress bar."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    return list(tqdm(pool.map(work, items), desc=desc, total=len(items), disable=not desc))


def _attempt(work: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
  try:
    return work(path)
  except Exception as error:  # as in Source._check
    raise ValueError(
      f"image {str(path)!r} cannot be read ({pixels.reason(error)}); restore or repair it and "
      "launch again, the run goes on from its newest checkpoint"
    ) from error
