"""Which pictures of a prompt are the memorised one: three ways to split them, and their doubts.

    kmeans   two clusters on raw pixels (Alberti et al., 2025): clusters.py
    radius   L2 to a reference picture, in [0, 1] pixels; Webster (2023) calls a picture copied
             where the sum of squares at 256 px is under 2,500: .113 sqrt(d) for d values
    sscd     the cosine of SSCD's descriptors with the reference's
    labels   what kmeans_labels.json says: by hand, or another's

Without a reference the *densest* picture is it: copies of one picture lie close together, so that
it is the one with the nearest neighbours.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

from jaxunlearn.evals import statistics

WAYS = ("kmeans", "radius", "sscd", "labels")
VERBATIM = (2500 / (3 * 256**2)) ** 0.5  # of Webster (2023): root mean square of [0, 1] pixels
FEW, APART, LOOSE = 0.05, 2.0, 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """The pictures of one prompt in two: memorised [N] bool, as what the reference shows."""

  memorised: np.ndarray
  reference: int  # the picture that stands for the memorised one
  apart: float  # of the two middles, in mean distances to the own one
  tight: float  # mean distance of the memorised to their middle, over that of the others
  away: float = 0.0  # of the picture nearest to a reference that was given, over the radius

  @property
  def share(self) -> float:
    return float(self.memorised.mean())

  @property
  def ci95(self) -> statistics.Interval:
    return statistics.wilson(int(self.memorised.sum()), len(self.memorised))

  @property
  def doubts(self) -> list[str]:
    """What speaks against it, a clause each."""
    return list(self._doubts())

  def _doubts(self) -> Iterator[str]:
    share = self.share
    if share in (0.0, 1.0):
      n = len(self.memorised)
      yield f"all {n} pictures are memorised" if share else f"none of {n} pictures is memorised"
      return
    if self.away > 1:
      yield f"no picture is the reference: the nearest is {self.away:.1f} times the radius away"
    if not FEW <= share <= 1 - FEW:
      yield f"the share memorised is {share:.0%}, near {round(share)}"
      return  # what follows is of a few pictures
    if self.apart < APART:
      yield f"the clusters are {self.apart:.1f} of their spreads apart, under {APART:g}"
    if self.tight > LOOSE:
      yield f"the memorised spread {self.tight:.2f} times as far as the others, over {LOOSE:g}"


def of(
  images: UInt8[np.ndarray, "N H W C"], memorised: np.ndarray, like: int | None = None
) -> Split:
  """The split that the labels are, with its figures; `like` is the reference, or the densest."""
  inside = np.flatnonzero(memorised)
  if like is None:
    like = int(inside[densest(images[inside])]) if len(inside) else densest(images)
  parts = [_spread(images[mask]) for mask in (memorised, ~memorised)]
  if not 0 < len(inside) < len(images):
    return Split(memorised, like, 0.0, 1.0)
  (middle, near), (other, far) = parts
  apart = float(np.linalg.norm(middle - other)) / max((near + far) / 2, 1e-12)
  return Split(memorised, like, apart, near / max(far, 1e-12))


def densest(images: UInt8[np.ndarray, "N H W C"]) -> int:
  """The picture whose k-th neighbour is nearest, k a tenth of them, 1 or more."""
  far = np.sort(distances(images, images), axis=1)
  return int(np.argmin(far[:, min(max(1, len(images) // 10), len(images) - 1)]))


def distances(
  a: UInt8[np.ndarray, "N H W C"], b: UInt8[np.ndarray, "M h w c"]
) -> Float[np.ndarray, "N M"]:
  """L2 in [0, 1] pixels.

  Raises:
    ValueError: pictures of two sizes.
  """
  if a.shape[1:] != b.shape[1:]:
    raise ValueError(
      f"a reference is {b.shape[1:]} and the pictures are {a.shape[1:]}; resize it to that"
    )
  a, b = (v.reshape(len(v), -1).astype(np.float32) / 255 for v in (a, b))
  return np.stack([np.linalg.norm(a - one, axis=1) for one in b], axis=1)


def verbatim_radius(shape: tuple[int, ...]) -> float:
  """Webster's, for pictures of that shape."""
  return VERBATIM * float(np.sqrt(np.prod(shape)))


def _spread(images: np.ndarray) -> tuple[np.ndarray, float]:
  """The middle of pictures, in [0, 1], and their mean distance to it; (nothing, 0) of none."""
  if not len(images):
    return np.zeros(0), 0.0
  flat = images.reshape(len(images), -1).astype(np.float32) / 255
  middle = flat.mean(axis=0)
  return middle, float(np.linalg.norm(flat - middle, axis=1).mean())
