"""Products with a layer's weights whose weight gradient is fast on CPU as well.

    y = x W,    dL/dW = sum over rows of x^T dL/dy

XLA's own weight gradient on CPU turns both factors over, and with each computes again what the
layer before and after it did: the gradient of a U-ViT's MLP takes twice the time. There both are
made first, and their product is taken as it is written. On other devices nothing changes. A
primitive of its own, because the rule of a `custom_vjp` excludes forward mode, which the
likelihood needs.
"""

from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def multiply(
  x: Float[Array | np.ndarray, "*rows C"], kernel: Float[Array | np.ndarray, "C D"]
) -> Float[Array, "*rows D"]:
  """x W over the last axis."""
  return _PRODUCT.bind(x, kernel)


def dot_general(x: Array, kernel: Array, dimensions: Any, **how: Any) -> Array:
  """`multiply` for the layers of Flax, which ask for a product over the last axis alone."""
  if dimensions != (((x.ndim - 1,), (0,)), ((), ())) or kernel.ndim != 2:
    raise ValueError(f"a product of dimensions {dimensions}; use x's last with the kernel's first")
  del how
  return multiply(x, kernel)


def plain(x: Array, kernel: Array) -> Array:
  """The same, whose gradients are XLA's own."""
  return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _by_rows(dy: Array, x: Any, kernel: Array) -> Array:
  """The gradient for x, of which the shape alone is known."""
  wanted = jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
  (dx,) = jax.linear_transpose(lambda x: plain(x, kernel), wanted)(dy)
  return dx


def _by_kernel(dy: Array, x: Array, kernel: Any) -> Array:
  """The gradient for the kernel, of which the shape alone is known."""
  wanted = jax.ShapeDtypeStruct(kernel.aval.shape, kernel.aval.dtype)

  def own(x: Array, dy: Array) -> Array:
    (dkernel,) = jax.linear_transpose(lambda w: plain(x, w), wanted)(dy)
    return dkernel

  return jax.lax.platform_dependent(x, dy, cpu=_as_written, default=own)


def _as_written(x: Array, dy: Array) -> Array:
  """x^T dy over all rows, of factors that are made before."""
  flat = (y.reshape(-1, y.shape[-1]) for y in (x, dy))
  rows, d_rows = jax.lax.optimization_barrier(tuple(flat))
  return jax.lax.dot_general(rows, d_rows, (((0,), (0,)), ((), ())))


def _batched(values: Any, axes: Any) -> tuple[Array, int]:
  """Under vmap: XLA's own."""
  return jax.vmap(plain, axes)(*values), 0


_PRODUCT = Primitive("product")
_PRODUCT.def_impl(jax.jit(plain))
_PRODUCT.def_abstract_eval(lambda x, kernel: x.update(shape=(*x.shape[:-1], kernel.shape[1])))
ad.defbilinear(_PRODUCT, _by_rows, _by_kernel)
batching.primitive_batchers[_PRODUCT] = _batched
mlir.register_lowering(_PRODUCT, mlir.lower_fun(plain, multiple_results=False))
