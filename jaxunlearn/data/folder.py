"""A folder of JPEG, PNG and WebP files of any size, decoded when a batch is read.

A record's id is its path in the folder (`faces/00001.jpg`), its class the first folder of that path
(`.` for files at the top); in the layout `style/class` the first folder is the style, and the
second the class. Records are in the order of their ids, the same on every machine. An image is
turned as its EXIF says, cropped to the centre square and resized with antialiasing, as PIL does;
colour profiles are ignored, and of an animation the first frame is read. Links to files are read;
links to folders may run in circles, so they are named and not entered.

Every file is checked once at the start, and what cannot be read is named. Held in memory: the ids
and the labels.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import stat
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from jaxunlearn import data, errors, weights

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
RESIZE = ("bicubic", "lanczos", "box", "bilinear")
LAYOUTS = ("class", "style/class")
MODES = {3: "RGB", 1: "L"}
TOP = "."  # the class of files in no folder: a name that no folder can have
NAMED = 3  # bad files that an error names


@dataclasses.dataclass(frozen=True)
class Source:
  path: str = ""  # the folder
  layout: str = "class"  # what its folders are: classes, or style/class: classes in each style
  size: int = 256  # pixels a side
  channels: int = 3  # 3 or 1
  heldout: int = 0  # one file in this many is held out; 0: none
  resize: str = "bicubic"
  convert: bool = False  # other modes too, alpha over white; False: they are bad input
  unreadable: str = "stop"  # or skip: go on without the files that cannot be used
  threads: int = 16
  verify: bool = True  # decode all files at the start; False: headers, and damage stops the run

  def load(self) -> tuple[data.Records, data.Records]:
    """(training, held-out) records; the split and the labels do not depend on what is skipped.

    Raises:
      ValueError: a field, folder or file that cannot be used, in one line.
    """
    self._check_fields()
    root = pathlib.Path(self.path).expanduser()
    names = find(root)
    mine = np.arange(len(names)) % max(self.heldout, 1) == self.heldout - 1
    if self.heldout and not mine.any():
      raise ValueError(
        f"config.data.heldout is {self.heldout} and {root} has {len(names)} images, so that none "
        f"is held out; use 0, or 2 to {len(names)}"
      )
    usable = self._usable(root, names)
    if not (usable & ~mine).any():
      raise ValueError(f"none of the {len(names)} images in {root} is left to train on; add some")
    records = self._records(root, names)
    return records.take(np.flatnonzero(usable & ~mine)), records.take(np.flatnonzero(usable & mine))

  def decode(self, path: pathlib.Path) -> np.ndarray:
    """The file's pixels, uint8 [size, size, channels]; raises what PIL raises."""
    with Image.open(path, formats=FORMATS) as image:
      self._check_mode(image)
      return self._pixels(image)

  def _check_fields(self) -> None:
    if not self.path:
      raise ValueError("config.data.path is empty; set it to the folder of images")
    errors.check_choice("layout of a folder", self.layout, LAYOUTS)
    errors.check_choice("resize filter", self.resize, RESIZE)
    errors.check_choice("way with unreadable images", self.unreadable, ("stop", "skip"))
    if self.channels not in MODES:
      raise ValueError(f"config.data.channels is {self.channels}; use 3 (RGB) or 1 (grey)")
    if self.heldout < 0 or self.heldout == 1:
      raise ValueError(f"one image in {self.heldout} held out; use 0 for none, or 2 or more")
    for field in ("size", "threads"):
      if getattr(self, field) < 1:
        raise ValueError(f"config.data.{field} is {getattr(self, field)}; use at least 1")

  def _usable(self, root: pathlib.Path, names: Sequence[str]) -> np.ndarray:
    """[N] bool: the files that can be used.

    Raises:
      ValueError: a file cannot be used and the run is to stop.
    """
    check = lambda name: self._check(root, name)
    found = threaded(check, names, self.threads, "check images")
    small = [name for name, (_, small) in zip(names, found, strict=True) if small]
    bad = [(name, why) for name, (why, _) in zip(names, found, strict=True) if why]
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
    if small:
      logging.warning(
        "%d of %d images are smaller than %d px and are enlarged, the first is %r",
        *(len(small), len(names), self.size, small[0]),
      )
    return np.array([not why for why, _ in found])

  def _check(self, root: pathlib.Path, name: str) -> tuple[str, bool]:
    """Why a file cannot be used ("" where it can), and whether it is smaller than `size`."""
    try:
      name.encode()  # ids are hashed and written as UTF-8
      if not stat.S_ISREG((root / name).stat().st_mode):  # opening a pipe would wait for ever
        raise ValueError("not a regular file")
      with Image.open(root / name, formats=FORMATS) as image:
        self._check_mode(image)
        if self.verify:
          self._pixels(image)
        return "", min(image.size) < self.size
    except Exception as error:  # PIL documents no list of what a bad file raises
      return _reason(error), False

  def _check_mode(self, image: Image.Image) -> None:
    mode, clear = MODES[self.channels], image.has_transparency_data
    if not self.convert and (image.mode != mode or clear):
      raise ValueError(f"mode {image.mode}{' with transparency' if clear else ''}, not {mode}")

  def _pixels(self, image: Image.Image) -> np.ndarray:
    square = centre(to_mode(ImageOps.exif_transpose(image), MODES[self.channels]))
    pixels = square.resize((self.size, self.size), Image.Resampling[self.resize.upper()])
    return np.asarray(pixels).reshape(self.size, self.size, self.channels)

  def _records(self, root: pathlib.Path, names: Sequence[str]) -> data.Records:
    folders = [name.split("/")[:-1] or [TOP] for name in names]
    ids, styled = np.array(names), self.layout == "style/class"
    if styled and (stray := [n for n, f in zip(names, folders, strict=True) if len(f) < 2]):
      raise ValueError(
        f"{len(stray)} of {len(names)} images in {root} are in no style/class folder, the first is "
        f"{stray[0]!r}; move it to one, or set config.data.layout=class"
      )
    label, classes = numbered([path[int(styled)] for path in folders])
    style, styles = numbered([path[0] for path in folders]) if styled else (None, ())
    return data.Records(ids, FolderImages(root, ids, self), label, classes, style, styles)


@dataclasses.dataclass(frozen=True)
class FolderImages:
  """data.Images of the files `names` in the folder `root`."""

  root: pathlib.Path
  names: np.ndarray  # [N] str
  source: Source

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
    return dataclasses.replace(self, names=self.names[index])

  def sha256(self, index: np.ndarray) -> list[str]:
    """The digests of the files' bytes; raises ValueError as reading does."""
    return self._each(weights.sha256, self.names[index], "hash images")

  def _each(self, work: Callable[[pathlib.Path], Any], names: np.ndarray, desc: str = "") -> list:
    attempt = lambda name: _attempt(work, self.root / name)
    return threaded(attempt, names.tolist(), self.source.threads, desc)


def find(root: pathlib.Path) -> list[str]:
  """The image files under a folder, as sorted POSIX paths in it.

  Raises:
    ValueError: no such folder, one that cannot be listed, or no image in it.
  """
  if not root.is_dir():
    raise ValueError(f"config.data.path {str(root)!r} is not a folder; give the folder of images")
  names, links, others = [], [], 0
  for folder, below, files in os.walk(root, onerror=_cannot_list):
    place = pathlib.Path(folder)
    images = [name for name in files if name.lower().endswith(SUFFIXES)]
    names += [(place / name).relative_to(root).as_posix() for name in images]
    links += [str(place / name) for name in below if (place / name).is_symlink()]
    others += len(files) - len(images)
  for link in sorted(links):
    logging.warning("%r is a link to a folder and is not entered; give that folder itself", link)
  if not names:
    raise ValueError(f"no image in {root} ({others} other files); it takes {', '.join(SUFFIXES)}")
  logging.info("%d images in %s; %d other files are not read", len(names), root, others)
  return sorted(names)


def numbered(values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
  """The place [N] of each value among the distinct ones, sorted; and these."""
  names, place = np.unique(np.array(values), return_inverse=True)
  return place.astype(np.int32), tuple(names.tolist())


def to_mode(image: Image.Image, mode: str) -> Image.Image:
  """RGB or L of any mode: alpha over white, 16 bits to 8 by v / 257."""
  if image.mode.startswith("I;16"):  # PIL itself would clip at 255
    image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
  if image.has_transparency_data:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
  return image.convert(mode)


def centre(image: Image.Image) -> Image.Image:
  """The largest square in the middle; an odd pixel too many is cut at the right or the bottom."""
  side = min(image.size)
  left, top = ((length - side) // 2 for length in image.size)
  return image.crop((left, top, left + side, top + side))


def threaded(work: Callable[[str], Any], items: Sequence[str], threads: int, desc: str) -> list:
  """`work` of each item, in order, in a pool of threads; with a `desc`, a progress bar."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    return list(tqdm(pool.map(work, items), desc=desc, total=len(items), disable=not desc))


def _attempt(work: Callable[[pathlib.Path], Any], path: pathlib.Path) -> Any:
  try:
    return work(path)
  except Exception as error:  # as in Source._check
    raise ValueError(
      f"image {str(path)!r} cannot be read ({_reason(error)}); restore or repair it and launch "
      "again, the run goes on from its newest checkpoint"
    ) from error


def _cannot_list(error: OSError) -> None:
  raise ValueError(
    f"folder {error.filename!r} cannot be listed ({error.strerror}); make it readable"
  ) from error


def _reason(error: Exception) -> str:
  if isinstance(error, UnidentifiedImageError):
    return "not a JPEG, PNG or WebP image"
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return (str(error).splitlines() or [type(error).__name__])[0]
