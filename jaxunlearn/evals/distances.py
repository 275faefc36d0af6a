"""How far pictures, or features, are from each other."""

import numpy as np
from jaxtyping import Float


def squared(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
  """|a_i - b_j|^2, by one product of matrices; never below 0."""
  lengths = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)
  return np.maximum(lengths - 2 * a @ b.T, 0)
