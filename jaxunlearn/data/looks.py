"""The look of a picture in 63 bits, to find near copies: one picture saved or resized again.

The perceptual hash of Zauner (2010, "Implementation and benchmarking of perceptual image hash
functions"): of the luma's DCT-II, the 8 x 8 lowest coefficients without the mean, each 1 where it
is above their median. The distance of two looks is the number of bits that differ. Measured on 300
emoji, a JPEG of quality 90 or a new size changes 0 to 2 in the median, a crop of 3% at each side 8;
other pictures differ in about 31.
"""

import numpy as np
from jaxtyping import Bool, UInt8, UInt64

LOWEST = 8  # frequencies a side
BITS = LOWEST**2 - 1
LUMA = np.array([0.299, 0.587, 0.114])
FLAT = np.uint64(1 << BITS)  # the look of a picture of one colour, which is like no other
LEVELS = 4  # between the darkest and the brightest pixel of what counts as one colour


def looks(image: UInt8[np.ndarray, "N H W C"]) -> UInt64[np.ndarray, " N"]:
  """The look of each picture, of 1 or 3 channels."""
  luma = image @ LUMA if image.shape[-1] == 3 else image[..., 0].astype(np.float64)
  down, across = (_cosines(length) for length in luma.shape[1:])
  lowest = (down @ luma @ across.T).reshape(len(luma), -1)[:, 1:]
  bits = lowest > np.median(lowest, axis=1, keepdims=True)
  found = bits.astype(np.uint64) @ (np.uint64(1) << np.arange(BITS, dtype=np.uint64))
  return np.where(np.ptp(luma, axis=(1, 2)) < LEVELS, FLAT, found)


def near(
  looks: UInt64[np.ndarray, " N"], mask: Bool[np.ndarray, " N"], radius: int
) -> list[tuple[int, int, int]]:
  """(a record outside the mask, one inside that it looks like, bits between them), nearest first.

  A record outside is named once, with the nearest inside, where that is within the radius.
  """
  kept = np.flatnonzero(~mask & (looks != FLAT))
  best, of = np.full(len(kept), BITS + 1), np.full(len(kept), -1)
  for i in np.flatnonzero(mask & (looks != FLAT)):
    bits = np.bitwise_count(looks[kept] ^ looks[i]).astype(int)
    of = np.where(bits < best, i, of)
    best = np.minimum(bits, best)
  close = [j for j in np.argsort(best, kind="stable") if best[j] <= radius]
  return [(int(kept[j]), int(of[j]), int(best[j])) for j in close]


def _cosines(length: int) -> np.ndarray:
  """[LOWEST, length]: the rows of the DCT-II matrix of the lowest frequencies."""
  frequency, place = np.arange(LOWEST)[:, None], np.arange(length)
  return np.cos(np.pi * frequency * (2 * place + 1) / (2 * length))
