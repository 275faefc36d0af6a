"""Convolutions of stride 1 whose weight gradient is fast on CPU as well.

    y = x * w,    dL/dw[i, j] = sum over pictures and pixels of (x shifted by (i, j)) dL/dy

XLA's own weight gradient takes three to four times PyTorch's time on CPU, on images from 8 px.
There it is written as one-dimensional convolutions along the width, one for each row of the kernel,
with all rows of all pictures as channels. On other devices nothing changes. A primitive of its own,
because the rule of a `custom_vjp` excludes forward mode, which the likelihood needs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]
SMALLEST = 8  # px a side from which the folded gradient is the faster one


def convolve(
  x: Float[Array | np.ndarray, "B H W C"],
  kernel: Float[Array | np.ndarray, "h w C D"],
  padding: Padding,
) -> Float[Array, "B _ _ D"]:
  """x * kernel at stride 1, padded by (top, bottom) and (left, right) zeros."""
  return _CONVOLVE.bind(x, kernel, padding=padding)


def plain(x: Array, kernel: Array, *, padding: Padding) -> Array:
  """The same, whose gradients are XLA's own."""
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _by_image(dy: Array, x: Any, kernel: Array, *, padding: Padding) -> Array:
  """The gradient for x, of which the shape alone is known."""
  wanted = jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
  (dx,) = jax.linear_transpose(lambda x: plain(x, kernel, padding=padding), wanted)(dy)
  return dx


def _by_kernel(dy: Array, x: Array, kernel: Any, *, padding: Padding) -> Array:
  """The gradient for the kernel, of which the shape alone is known."""
  wanted = jax.ShapeDtypeStruct(kernel.aval.shape, kernel.aval.dtype)

  def own(x: Array, dy: Array) -> Array:
    (dkernel,) = jax.linear_transpose(lambda w: plain(x, w, padding=padding), wanted)(dy)
    return dkernel

  if min(dy.shape[1:3]) < SMALLEST:
    return own(x, dy)
  folded = functools.partial(_folded, size=wanted.shape[:2], padding=padding)
  return jax.lax.platform_dependent(x, dy, cpu=folded, default=own)


def _folded(x: Array, dy: Array, *, size: tuple[int, int], padding: Padding) -> Array:
  """The gradient for a kernel of that size, by convolutions along the width."""
  ((top, bottom), (left, right)), (high, wide) = padding, size
  batch, height, width, features = dy.shape
  image = dy.transpose(3, 2, 0, 1).reshape(features, width, batch * height)
  rows = jnp.pad(x, ((0, 0), (top, bottom), (0, 0), (0, 0))).transpose(2, 0, 1, 3)
  ends = ((wide - 1 - left, wide - 1 - right),)

  def tap(i: int) -> Array:
    seen = rows[:, :, i : i + height].reshape(len(rows), batch * height, -1)
    return jax.lax.conv_general_dilated(
      image, seen, (1,), ends, dimension_numbers=("NWC", "WIO", "NWC")
    )

  taps = jnp.stack([tap(i) for i in range(high)])  # [h, D, w from last to first, C]
  return taps[:, :, ::-1].transpose(0, 2, 3, 1)


def _batched(values: Any, axes: Any, *, padding: Padding) -> tuple[Array, int]:
  """Under vmap: XLA's own."""
  return jax.vmap(functools.partial(plain, padding=padding), axes)(*values), 0


_CONVOLVE = Primitive("convolve")
_CONVOLVE.def_impl(jax.jit(plain, static_argnames="padding"))
_CONVOLVE.def_abstract_eval(lambda x, kernel, *, padding: _shape(x, kernel, padding))
ad.defbilinear(_CONVOLVE, _by_image, _by_kernel)
batching.primitive_batchers[_CONVOLVE] = _batched
mlir.register_lowering(_CONVOLVE, mlir.lower_fun(plain, multiple_results=False))


def _shape(x: Any, kernel: Any, padding: Padding) -> Any:
  sizes = zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
  height, width = (size + sum(ends) - taps + 1 for size, taps, ends in sizes)
  return x.update(shape=(x.shape[0], height, width, kernel.shape[3]))
