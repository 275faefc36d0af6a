r"""f-divergences of two samples by regularised kernel regression of their density ratio.

Of samples of Q and of a base P (Chen et al., 2024; Ribero et al., 2026), with C = E_P[k_x (x) k_x]
and the mean embeddings mu_P, mu_Q,

    h = (C + lam)^{-1} (mu_Q - mu_P),   1 + h -> dQ/dP for lam -> 0,   lam h -> mu_Q - mu_P, MMD's

    D_f(Q || P) = sup_g E_Q[g] - E_P[f*(g)]

chi2          sup_h 2 E_Q[h] - E_P[2 h + h^2] - lam ||h||^2 = E_Q[h] - E_P[h], the regularised
              chi^2 divergence, of which 1/lam times MMD^2 is the other end
hockey_stick  g = [r > order],  f*(g) = order g      at r = 1 + h

With K of m base points (C + lam)^{-1} is (1/lam) (1 - k_U (K + m lam)^{-1} k_U'), so h is linear in
the weights of Q's points. All of it is float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

Entries = Callable[[np.ndarray], np.ndarray]


class Divergence(NamedTuple):
  """Of h: what is averaged over Q and over P, and how D moves with a point of Q and of P.

  D = mean_Q of_q(h) - mean_P of_p(h). To first order a point of Q moves it by moves_q(h) / n_Q, one
  of P by -moves_p(h) / n_P: h maximises, so that it counts as fixed.
  """

  of_q: Entries
  of_p: Entries
  moves_q: Entries
  moves_p: Entries


def divergences(order: float) -> dict[str, Divergence]:
  """By name; `order` is the hockey stick's, e^epsilon of differential privacy."""
  same: Entries = lambda h: h
  above = lambda h: np.where(1 + h > order, 1.0, 0.0)
  below = lambda h: order * above(h)
  return {
    "chi2": Divergence(same, same, lambda h: 2 * h, lambda h: 2 * h + h**2),
    "hockey_stick": Divergence(above, below, above, below),
  }


def squared_distances(
  x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]
) -> Float64[np.ndarray, "N M"]:
  """At least 0."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  lengths = np.sum(x**2, axis=1)[:, None], np.sum(y**2, axis=1)
  return np.maximum(lengths[0] + lengths[1] - 2 * x @ y.T, 0.0)


class Witnesses:
  """h at all points, those of the base first; one decomposition serves every lam."""

  def __init__(self, kernel: Float64[np.ndarray, "N N"], base: int):
    """`base` is how many of the N points are the base's."""
    self._base, self._kernel = base, kernel
    self._values, vectors = np.linalg.eigh(kernel[:base, :base])
    self._rotated = vectors.T @ kernel[:base]  # [base, N]

  def of(self, weights: Float64[np.ndarray, "P B"], lam: float) -> Float64[np.ndarray, "N B"]:
    """h for B measures on the P points that are not the base, each of sum 1."""
    of_base = self._apply(np.full((self._base, 1), 1 / self._base), slice(None, self._base), lam)
    return self._apply(weights, slice(self._base, None), lam) - of_base

  def _apply(self, weights: np.ndarray, part: slice, lam: float) -> np.ndarray:
    shrunk = self._rotated[:, part] @ weights / (self._values + self._base * lam)[:, None]
    return (self._kernel[:, part] @ weights - self._rotated.T @ shrunk) / lam
