"""How many samples look like real pictures: a quality for pictures that no CLIP knows.

    typical_share = share of samples that are neither blank nor noisy, and whose features lie as
                    near (L2) to those of some real picture as those of 90% of the unseen ones do

Features are the penultimate layer of config.eval.classifier; real are the pictures that it was
trained on, unseen those that it was tested on. A blank varies less (standard deviation of its
values) than 99% of the real ones. A noisy one has no calm place: more than three quarters of its
blocks of 4 x 4 pixels have a standard deviation over NOISE. Networks after gradient ascent draw
such pictures, and features alone take them for real. For the classifier `little_styles` .89 of
unseen pictures are typical, .44 with noise of standard deviation .05 on them, none with .1, and
none with their pixels shuffled. A copy of a real picture is typical, and so is a blurred one. By
_original or _kept at the end as `evals.Task.groups` has it.
"""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxunlearn import data, errors, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, distances, statistics

SHARE = 0.9  # of the unseen pictures that are typical
BLANK = 0.01  # of the real pictures vary no more than a blank
NOISE, SIDE, CALM = 0.03, 4, 0.25  # of values in [-1, 1]; pixels of a block; the share of blocks


def check(options: Any) -> None:
  """Raises ValueError where no classifier whose pictures are known has that name."""
  errors.check_choice(
    "classifier whose pictures are known", options.classifier, classifiers.RECIPES
  )


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`typical_share` of each group of samples, with Wilson intervals."""
  del eps_fn  # the samples are made from it
  hits = are(task.options.classifier, np.asarray(task.samples))
  judge = classifiers.load(task.options.classifier)
  values = {}
  for end, mask in task.groups.items():
    count, n = int(hits[mask].sum()), int(mask.sum())
    how = f"extractor={judge.identity} share={SHARE} blank={BLANK} noise={NOISE}"
    identity = f"asked={n} {how} {task.samples_identity}"
    values[f"typical_share{end}"] = evals.Value(count / n, statistics.wilson(count, n), identity)
  return values


def are(classifier: str, images: Float[np.ndarray, "N H W C"]) -> np.ndarray:
  """[N] bool: which images are typical, clipped to [-1, 1] as they are shown; NaN is not."""
  real, limit, least = reference(classifier)
  images = np.clip(images, -1, 1)
  found = classifiers.load(classifier).features(images).astype(np.float64)
  varied = (variation(images) >= least) & (noise(images) <= NOISE)
  return varied & (nearest(found, real) <= limit)


@functools.cache
def reference(name: str) -> tuple[Float[np.ndarray, "M D"], float, float]:
  """Features of the real pictures of a classifier, the largest distance, the least variation."""
  judge = classifiers.load(name)
  images = [data.to_model(part.image[np.arange(len(part))]) for part in judge.recipe.records()]
  real, unseen = (judge.features(part).astype(np.float64) for part in images)
  limit = np.quantile(nearest(unseen, real), SHARE)
  return real, float(limit), float(np.quantile(variation(images[0]), BLANK))


def nearest(
  features: Float[np.ndarray, "N D"], real: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, " N"]:
  """The L2 of each row to the nearest real one."""
  return np.sqrt(distances.squared(features, real).min(axis=1))


def variation(images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, " N"]:
  """The standard deviation of the values of each image."""
  return images.reshape(len(images), -1).std(axis=1, dtype=np.float64)


def noise(images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, " N"]:
  """How much the calmest blocks of each image vary: a quantile of their standard deviations."""
  n, h, w, c = images.shape
  rows, columns = h // SIDE, w // SIDE
  whole = images[:, : rows * SIDE, : columns * SIDE]
  blocks = whole.reshape(n, rows, SIDE, columns, SIDE, c).std(axis=(2, 4), dtype=np.float64)
  return np.quantile(blocks.mean(axis=-1).reshape(n, -1), CALM, axis=1)
