"""Products with a layer's weights whose weight gradient is fast on CPU as well.

    y = x W,    dL/dW = sum over rows of x^T dL/dy

XLA's own weight gradient on CPU turns both factors over, and with each computes again what the
layer before and after it did: the gradient of a U-ViT's MLP takes twice the time. There both are
made first, and their product is taken as it is written. On other devices nothing changes.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.models import bilinear


def multiply(
  x: Float[Array | np.ndarray, "*rows C"], kernel: Float[Array | np.ndarray, "C D"]
) -> Float[Array, "*rows D"]:
  """x W over the last axis."""
  return _PRODUCT.bind(x, kernel)


def dot_general(x: Array, kernel: Array, dimensions: Any, precision: None = None) -> Array:
  """`multiply` for the layers of Flax, which ask for a product over the last axis alone.

  Raises:
    ValueError: other dimensions, or a precision.
  """
  if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or kernel.ndim != 2 or precision is not None:
    raise ValueError(
      f"a product of dimensions {dimensions} in precision {precision}; use x's last with the "
      "kernel's first, in None"
    )
  return multiply(x, kernel)


def plain(x: Array, kernel: Array) -> Array:
  """The same, whose gradients are XLA's own."""
  return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _as_written(x: Array, dy: Array) -> Array:
  """x^T dy over all rows, of factors that are made before."""
  flat = (y.reshape(-1, y.shape[-1]) for y in (x, dy))
  rows, d_rows = jax.lax.optimization_barrier(tuple(flat))
  return jax.lax.dot_general(rows, d_rows, (((0,), (0,)), ((), ())))


_PRODUCT = bilinear.primitive("product", plain, lambda dy, kernel: _as_written)
