"""Pictures for people to look at: grids of samples, and the samples nearest to the target."""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxunlearn import data

COLUMNS, SHOWN = 8, 64
CHUNK = 64  # training pictures compared at a time


def grid(
  images: Float[np.ndarray, "N H W C"], columns: int = COLUMNS, scale: int = 3
) -> UInt8[np.ndarray, "rows cols C"]:
  """Images in [-1, 1], row by row, each pixel `scale` x `scale`, a grey pixel between images.

  Values outside are clipped and NaN is black: a diverged model is to be seen too.
  """
  n, height, width, channels = images.shape
  if not n or channels not in (1, 3):
    raise ValueError(f"images are {images.shape}; give [N, H, W, C] with N > 0 and C 1 or 3")
  columns = min(columns, n)
  rows = -(-n // columns)
  cells = np.full((rows * columns, height + 1, width + 1, channels), 96, np.uint8)
  cells[:n, :height, :width] = data.to_pixels(images)
  table = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
  table = table.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
  return table.repeat(scale, axis=0).repeat(scale, axis=1)


def nearest(
  samples: Float[np.ndarray, "N H W C"], target: Float[np.ndarray, "M H W C"], n: int = COLUMNS
) -> Float[np.ndarray, "n H W C"]:
  """The n samples nearest by pixel L2 to any of the targets, the nearest first."""
  distance = [min(np.linalg.norm(sample - a) for a in target) for sample in samples]
  return samples[np.argsort(distance, kind="stable")[:n]]


def write_phase(
  folder: pathlib.Path,
  phase: str,
  samples: Float[np.ndarray, "N H W C"],
  target: Float[np.ndarray, "M H W C"],
) -> None:
  """{phase}.png, and where there is a target also {phase}_nearest.png and target.png."""
  folder.mkdir(parents=True, exist_ok=True)
  write_grid(folder / f"{phase}.png", samples[:SHOWN])
  if len(target):
    write_grid(folder / f"{phase}_nearest.png", nearest(samples, target))
    write_grid(folder / "target.png", target[:SHOWN])


def write_conditions(
  folder: pathlib.Path,
  phase: str,
  samples: Float[np.ndarray, "N H W C"],
  c: np.ndarray,
  asked: np.ndarray,
) -> None:
  """{phase}.png, a row a kept condition, and {phase}_asked.png of what is to be forgotten."""
  folder.mkdir(parents=True, exist_ok=True)
  if not asked.all():
    kept = c.reshape(len(c), -1)[~asked]
    _, group, counts = np.unique(kept, axis=0, return_inverse=True, return_counts=True)
    columns = min(COLUMNS, *counts.tolist())  # as many of each
    rows = [np.flatnonzero(group.ravel() == i)[:columns] for i in range(len(counts))]
    write_grid(folder / f"{phase}.png", samples[~asked][np.concatenate(rows)], columns)
  if asked.any():
    write_grid(folder / f"{phase}_asked.png", samples[asked][: 2 * COLUMNS])


def write_pairs(
  folder: pathlib.Path,
  phase: str,
  samples: Float[np.ndarray, "N H W C"],
  partners: Float[np.ndarray, "N H W C"],
  target: Float[np.ndarray, "M H W C"],
) -> None:
  """{phase}_pairs.png, each sample with its partner; {phase}_nearest.png; target.png."""
  folder.mkdir(parents=True, exist_ok=True)
  both = np.stack([samples, partners], axis=1).reshape(-1, *samples.shape[1:])
  write_grid(folder / f"{phase}_pairs.png", both[:SHOWN])
  write_grid(folder / f"{phase}_nearest.png", nearest(samples, target))
  write_grid(folder / "target.png", target[:COLUMNS])


def beside(
  samples: Float[np.ndarray, "N H W C"], parts: Sequence[data.Records]
) -> Float[np.ndarray, "N H W C"]:
  """The picture of the records that is nearest by pixel L2 to each sample; black for NaN."""
  flat = samples.reshape(len(samples), -1)
  out, best = np.full_like(samples, -1), np.full(len(samples), np.inf)
  for pixels in (pixels for part in parts for pixels in part.chunks(CHUNK)):
    images = data.to_model(pixels)
    others = images.reshape(len(images), -1)
    far = (others**2).sum(axis=1) - 2 * flat @ others.T  # and what all have in common
    place = far.argmin(axis=1)
    found = far[np.arange(len(flat)), place]
    better = found < best
    out[better], best[better] = images[place[better]], found[better]
  return out


def write_one(path: pathlib.Path, image: Float[np.ndarray, "H W C"]) -> None:
  """A picture by itself."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_grid(path, image[None], 1)


def write_grid(
  path: pathlib.Path, images: Float[np.ndarray, "N H W C"], columns: int = COLUMNS
) -> None:
  """Small images are enlarged, so that their pixels show; the file appears whole or not at all."""
  scale = max(1, min(3, 96 // images.shape[1]))
  pixels = grid(images, columns, scale)
  temporary = path.with_suffix(".tmp")
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(temporary, "PNG")
  temporary.replace(path)
