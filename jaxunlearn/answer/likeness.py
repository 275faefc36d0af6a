"""Records that look like a picture which was cropped, resized or saved again.

First by looks (data/looks.py): the bits that differ from the whole record, or from a window of it
of 90, 80 or 70% a side, at nine places. Records that are near in pixels, and have little to be told
by looks, count too. All are ordered by pixels: the root mean square between the picture and that
window, in [0, 1].
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from jaxunlearn.data import Records, looks

NEAR = 12  # bits of 63 from here on are another picture: others differ in about 31
CLOSE = 4  # bits at which no window is looked at
SHARES = (0.9, 0.8, 0.7)  # of a side
PLACES = (0.0, 0.5, 1.0)  # of a window: at the start, in the middle, at the end
ALIKE = 0.1  # in pixels: as near as another picture seldom is
FIRST = 64  # records by looks that are ordered by pixels
CHUNK = 1024

Window = tuple[float, float, float]  # share, place down, place across
WHOLE: Window = (1.0, 0.0, 0.0)


class Like(NamedTuple):
  """A record that a picture may be."""

  place: int  # among the records
  bits: int
  distance: float


def like(picture: UInt8[np.ndarray, "H W C"], records: Records, most: int = 5) -> list[Like]:
  """The records within NEAR bits or ALIKE in pixels, the likest first.

  [] where none is, or the picture is of one colour.
  """
  mine = looks.looks(picture[None])[0]
  if mine == looks.FLAT or not len(records):
    return []
  best = _bits(mine, _whole(records))
  of, alike, windows = np.zeros(len(records), int), best > looks.BITS, [WHOLE]
  if best.min() > CLOSE:
    windows += list(itertools.product(SHARES, PLACES, PLACES))
    best, of, alike = _nearest(mine, picture, records, windows)
  order = np.lexsort((best, ~alike))  # those alike in pixels first, then by bits
  near = [i for i in order[:FIRST].tolist() if alike[i] or best[i] <= NEAR]
  found = [
    Like(i, int(best[i]), _distance(picture, records.image[np.array([i])][0], windows[of[i]]))
    for i in near
  ]
  return sorted(found, key=lambda one: (one.distance, one.bits))[:most]


def _whole(records: Records) -> np.ndarray:
  """The looks of all records, read where the data did not do so yet."""
  known = records.looks()
  if known is not None:
    return known
  return np.concatenate([looks.looks(pixels) for pixels in records.chunks(CHUNK)])


def _nearest(
  mine: np.uint64, picture: np.ndarray, records: Records, windows: list[Window]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
  """The fewest bits to any window of each record, which window that is, and who is ALIKE.

  Of a record that is alike the window is the whole of it.
  """
  best, of, alike = [], [], []
  for pixels in records.chunks(CHUNK):
    bits = np.stack([_bits(mine, looks.looks(_cut(pixels, window))) for window in windows])
    gap = pixels.astype(np.float32) - picture
    alike.append(np.sqrt(np.mean(gap**2, axis=(1, 2, 3))) <= 255 * ALIKE)
    best.append(bits.min(axis=0))
    of.append(np.where(alike[-1], 0, bits.argmin(axis=0)))
  return np.concatenate(best), np.concatenate(of), np.concatenate(alike)


def _bits(one: np.uint64, others: np.ndarray) -> np.ndarray:
  """How many bits differ; of a flat picture as many as can be."""
  bits = np.bitwise_count(others ^ one).astype(int)
  return np.where(others == looks.FLAT, looks.BITS, bits)


def _cut(pixels: np.ndarray, window: Window) -> np.ndarray:
  """The window of pictures [N, H, W, C]."""
  rows, columns = _spans(pixels.shape[1:3], window)
  return pixels[:, rows, columns]


def _spans(size: tuple[int, ...], window: Window) -> Iterator[slice]:
  """The rows and the columns of a window."""
  share, *places = window
  for length, place in zip(size, places, strict=True):
    kept = max(round(share * length), looks.LOWEST)
    start = round(place * (length - kept))
    yield slice(start, start + kept)


def _distance(picture: np.ndarray, record: np.ndarray, window: Window) -> float:
  """The root mean square between a picture and the window of a record, at the picture's size."""
  cut = _cut(record[None], window)[0]
  height, width = picture.shape[:2]
  there = _resized(cut, (width, height)).astype(np.float64)
  return float(np.sqrt(np.mean((there - picture.astype(np.float64)) ** 2)) / 255)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
  return np.asarray(image.resize(size, Image.Resampling.BICUBIC)).reshape(*size[::-1], -1)
