"""The Frechet distance of two Gaussians (Heusel et al., 2017), and their moments, streamed.

    d^2 = ||mu_1 - mu_2||^2 + tr(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

Moments of features that come in parts are merged by Chan, Golub and LeVeque (1979):

    n = n_1 + n_2,  delta = mu_2 - mu_1,  mu = mu_1 + delta n_2 / n
    M2 = M2_1 + M2_2 + delta delta^T n_1 n_2 / n,  C = M2 / (n - 1)

All of it is float64.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

Mean = Float64[np.ndarray, " D"]
Cov = Float64[np.ndarray, "D D"]


class Moments(NamedTuple):
  """How many features, their mean, and the sum of the outer products of their deviations."""

  n: int
  mean: Mean
  m2: Cov

  @property
  def cov(self) -> Cov:
    """Unbiased; of one feature or none it is 0."""
    return self.m2 / max(self.n - 1, 1)


def moments(features: Float[np.ndarray, "N D"]) -> Moments:
  """Of one row a point mass, of none a point mass at 0."""
  return stream([features], features.shape[1])


def stream(parts: Iterable[Float[np.ndarray, "N D"]], d: int) -> Moments:
  """The moments of all parts together, one part in memory at a time."""
  total = Moments(0, np.zeros(d), np.zeros((d, d)))
  for part in parts:
    total = _add(total, part.astype(np.float64)) if len(part) else total
  return total


def _add(total: Moments, part: Float64[np.ndarray, "N D"]) -> Moments:
  """Chan's formula; delta is one more row of the deviations, so that one product gives M2."""
  n = total.n + len(part)
  delta = part.mean(axis=0) - total.mean
  between = delta * np.sqrt(total.n * len(part) / n)
  deviations = np.vstack([part - part.mean(axis=0), between])
  return Moments(n, total.mean + delta * len(part) / n, total.m2 + deviations.T @ deviations)


def distance(a: Moments, b: Moments) -> float:
  """The squared distance, at least 0."""
  return distance_to(a)(b)


def distance_to(a: Moments) -> Callable[[Moments], float]:
  """`distance` to one Gaussian, whose root is taken once.

  Both roots are of symmetric matrices, so eigenvalues give them: a general matrix root of C_1 C_2
  loses precision, or turns complex, where a covariance is singular.
  """
  cov = a.cov
  values, vectors = np.linalg.eigh(cov)
  root = (vectors * _roots(values)) @ vectors.T

  def distance(b: Moments) -> float:
    cross = _roots(np.linalg.eigvalsh(root @ b.cov @ root)).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.trace(cov) + np.trace(b.cov) - 2 * cross
    return float(max(squared, 0.0))

  return distance


def _roots(values: Float64[np.ndarray, " D"]) -> Float64[np.ndarray, " D"]:
  """Square roots of eigenvalues; those within rounding of 0 count as 0."""
  return np.sqrt(np.where(values > len(values) * np.finfo(float).eps * values.max(), values, 0.0))
