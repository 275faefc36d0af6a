"""Inception score (Salimans et al., 2016) by a small classifier, without the targets.

    IS = exp(mean_i KL(p(y|x_i) || p(y))),   p(y) = mean_i p(y|x_i)

It runs from 1 (one class, or nothing recognised) to the number of classes. As Alberti et al.
(2025) do: samples of the target are removed first, and it is the mean over 10 splits in the order
of the samples.
"""

import numpy as np
from jaxtyping import Float

from jaxunlearn import evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, statistics

SPLITS = 10

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`inception_score`, with the interval of the mean over splits."""
  del eps_fn
  classifier = classifiers.load(task.options.classifier)
  scores = split_scores(classifier.probabilities(task.kept))
  identity = evals.identity(extractor=classifier.identity, removed="target", splits=len(scores))
  value = evals.Value(
    float(scores.mean()),
    statistics.mean_interval(scores),
    f"{identity} {task.samples_identity}",
  )
  return {"inception_score": value}


def split_scores(p: Float[np.ndarray, "N K"]) -> Float[np.ndarray, " S"]:
  """The score of each split; of 10, or fewer where they would hold under two samples each.

  Of no samples at all it is 1, the lowest score.
  """
  if not len(p):
    return np.ones(1)
  return np.array([score(part) for part in np.array_split(p, np.clip(len(p) // 2, 1, SPLITS))])


def score(p: Float[np.ndarray, "N K"]) -> float:
  """exp of the mean divergence of the rows from their mean."""
  log = lambda q: np.log(np.maximum(q, np.finfo(np.float64).tiny))
  return float(np.exp(np.mean(np.sum(p * (log(p) - log(p.mean(axis=0))), axis=1))))
