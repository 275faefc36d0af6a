"""Weights rounded to few bits, as a deployed model has them: symmetric, a scale per output channel.

    W[..., o] = s_o round(W[..., o] / s_o),   s_o = max |W[..., o]| / (2^(bits - 1) - 1)

Kernels of linear layers and convolutions are rounded; biases, norms and embeddings are not. What
comes back are floats on that grid: the arithmetic is the network's own.
"""

from typing import Any

import jax
import numpy as np

Tree = Any


def rounded(params: Tree, bits: int) -> Tree:
  """The parameters with every kernel rounded to so many bits; as they are for 0."""
  if not bits:
    return params
  each = lambda path, leaf: _round(np.asarray(leaf), bits) if path[-1].key == "kernel" else leaf
  return jax.tree.map_with_path(each, params)


def _round(kernel: np.ndarray, bits: int) -> np.ndarray:
  levels = 2 ** (bits - 1) - 1
  largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True)
  scale = np.where(largest > 0, largest, 1) / np.float32(levels)
  return (np.rint(kernel / scale) * scale).astype(kernel.dtype)
