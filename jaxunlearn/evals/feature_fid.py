"""Frechet distance (Heusel et al., 2017) of digit-classifier features, without the targets.

    d^2 = ||mu_1 - mu_2||^2 + tr(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

between Gaussians fitted to the 64 features of the samples and of the reference images. It is no
Inception FID: compare it only with values of the same identity.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, Float64

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import digits, statistics

RESAMPLES = 200

Mean = Float64[np.ndarray, " D"]
Cov = Float64[np.ndarray, "D D"]


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`feature_fid`, with a bootstrap interval over the samples."""
  del eps_fn
  classifier = digits.load()
  reference = [classifier.features(data.to_model(part)) for part in task.reference.chunks(256)]
  to_reference = frechet_to(*moments(np.concatenate(reference)))
  features = classifier.features(task.kept)
  distance = lambda sample: to_reference(*moments(sample))
  rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key("feature_fid"))))
  interval = statistics.bootstrap(distance, features, rng, RESAMPLES)
  identity = evals.identity(
    extractor=classifier.identity,
    removed="target",
    reference=task.reference_identity,
    bootstrap=RESAMPLES,
  )
  value = evals.Value(
    distance(features),
    interval and (max(0.0, interval[0]), interval[1]),
    f"{identity} {task.samples_identity}",
  )
  return {"feature_fid": value}


def moments(features: Float[np.ndarray, "N D"]) -> tuple[Mean, Cov]:
  """Mean and covariance in float64; of one row a point mass, of none a point mass at 0."""
  features = features.astype(np.float64)
  n, d = features.shape
  mu = features.mean(axis=0) if n else np.zeros(d)
  centred = features - mu
  return mu, centred.T @ centred / max(n - 1, 1)


def frechet(mu_1: Mean, cov_1: Cov, mu_2: Mean, cov_2: Cov) -> float:
  """The squared distance of two Gaussians, at least 0."""
  return frechet_to(mu_1, cov_1)(mu_2, cov_2)


def frechet_to(mu_1: Mean, cov_1: Cov) -> Callable[[Mean, Cov], float]:
  """`frechet` to one Gaussian, whose root is taken once.

  Both roots are of symmetric matrices, so eigenvalues give them: a general matrix root of C_1 C_2
  loses precision, or turns complex, where a covariance is singular.
  """
  values, vectors = np.linalg.eigh(cov_1)
  root = (vectors * _roots(values)) @ vectors.T

  def distance(mu_2: Mean, cov_2: Cov) -> float:
    cross = _roots(np.linalg.eigvalsh(root @ cov_2 @ root)).sum()
    squared = np.sum((mu_1 - mu_2) ** 2) + np.trace(cov_1) + np.trace(cov_2) - 2 * cross
    return float(max(squared, 0.0))

  return distance


def _roots(values: Float64[np.ndarray, " D"]) -> Float64[np.ndarray, " D"]:
  """Square roots of eigenvalues; those within rounding of 0 count as 0."""
  return np.sqrt(np.where(values > len(values) * np.finfo(float).eps * values.max(), values, 0.0))
