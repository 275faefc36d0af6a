"""How many samples look like real pictures: a quality for pictures that no CLIP knows.

    typical_share = share of samples that are as near to some real picture (L2 of pixels) as 90% of
                    the unseen real pictures are

Real are the pictures that the classifier of config.eval.classifier was trained on, unseen those
that it was tested on. About .9 of real pictures, 0 of noise; copies and blank pictures count as
typical. Samples that are a whole multiple of the classifier's size are averaged down to it. By
_original or _kept at the end as `evals.Task.groups` has it.
"""

import functools

import numpy as np
from jaxtyping import Float

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, distances, statistics

SHARE = 0.9  # of the unseen pictures that are typical

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`typical_share` of each group of samples, with Wilson intervals."""
  del eps_fn  # the samples are made from it
  name = task.options.classifier
  real, limit = reference(name)
  small = classifiers.shrunk(np.asarray(task.samples), classifiers.RECIPES[name].shape)
  hits = nearest(small, real) <= limit  # NaN is not
  values = {}
  for end, mask in task.groups.items():
    count, n = int(hits[mask].sum()), int(mask.sum())
    how = f"extractor=pixels real={name}:{len(real)} share={SHARE}"
    identity = f"asked={n} {how} {task.samples_identity}"
    values[f"typical_share{end}"] = evals.Value(count / n, statistics.wilson(count, n), identity)
  return values


@functools.cache
def reference(name: str) -> tuple[Float[np.ndarray, "M D"], float]:
  """The real pictures of a classifier, flat, and the largest distance that is typical."""
  records = classifiers.RECIPES[name].records()
  parts = [data.to_model(part.image[np.arange(len(part))]) for part in records]
  real = parts[0].reshape(len(parts[0]), -1)
  return real, float(np.quantile(nearest(parts[1], real), SHARE))


def nearest(
  images: Float[np.ndarray, "N H W C"], real: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, " N"]:
  """The L2 of each image to the nearest real one, by values in [-1, 1].

  Raises:
    ValueError: images of another size.
  """
  flat = images.reshape(len(images), -1).astype(np.float64)
  if flat.shape[1] != real.shape[1]:
    raise ValueError(
      f"samples are {images.shape[1:]}, and the real pictures of config.eval.classifier have "
      f"{real.shape[1]} values; name a classifier of that size, or of a whole part of it"
    )
  return np.sqrt(distances.squared(flat, real).min(axis=1))
