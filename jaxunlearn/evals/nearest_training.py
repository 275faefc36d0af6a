"""How many samples lie nearer a training picture than pictures that were held out do.

    d(x) = min over training pictures a of |x - a|,  in pixels of [0, 1] over sqrt(pixels)

copied           the share of samples with d below that of all but 5% of the held-out pictures: .05
                 is what a model that memorises nothing has, 1 one that hands out its training set
nearer           P(d(sample) < d(held out)), ties count half: .5 where samples are no nearer

Both against the same training set, the whole one, for every mode of a composition and the monolith.
"""

import math
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import distances, statistics

SHARE = 0.05  # of the held-out pictures that are nearer than the threshold
CHUNK = 512  # training pictures compared at once


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`copied` with a Wilson interval, `nearer` with a bootstrap one; {} with nothing held out."""
  del eps_fn
  if task.split is None or len(task.split.like_kept) < 2 or not len(task.split.kept):
    return {}
  kept = task.split.kept
  train = lambda: map(data.to_model, kept.chunks(CHUNK))
  heldout = np.concatenate([data.to_model(part) for part in task.split.like_kept.chunks(CHUNK)])
  mine, theirs = nearest(task.kept, train()), nearest(heldout, train())
  rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key("nearest_training"))))
  hits, n = int((mine < np.quantile(theirs, SHARE)).sum()), len(mine)
  identity = evals.identity(
    extractor="pixels", train=len(kept), heldout=len(heldout), threshold=SHARE
  )
  said = f"{identity} {task.samples_identity}"
  interval = statistics.bootstrap_of(nearer, (mine, theirs), rng)
  return {
    "copied": evals.Value(hits / max(n, 1), statistics.wilson(hits, n), said),
    "nearer": evals.Value(nearer(mine, theirs), interval, said),
  }


def nearest(
  x: Float[np.ndarray, "N H W C"], train: Iterator[np.ndarray]
) -> Float[np.ndarray, " N"]:
  """The root mean square of the pixels' difference to the nearest training picture, in [0, 1]."""
  flat = np.asarray(x, np.float32).reshape(len(x), math.prod(x.shape[1:]))
  best = np.full(len(x), np.inf)
  for part in train:
    best = np.minimum(best, distances.squared(flat, part.reshape(len(part), -1)).min(axis=1))
  return np.sqrt(best / flat.shape[1]) / 2


def nearer(mine: Float[np.ndarray, " N"], theirs: Float[np.ndarray, " M"]) -> float:
  """P(mine < theirs) of one of each at random; 1/2 where there is none."""
  if not len(mine):
    return 0.5
  order = np.sort(theirs)
  below = np.searchsorted(order, mine, "right")  # of theirs that are not above
  equal = below - np.searchsorted(order, mine, "left")
  return float(np.mean(len(order) - below + equal / 2) / len(order))
