"""FID's Inception-v3 (Szegedy et al., 2016; Heusel et al., 2017): 2048 features of an image.

It is TensorFlow's network of 2015-12-05, as pytorch-fid ports it. It differs from torchvision's:
average pools inside blocks A, C and E count no padding, and the last block takes a maximum instead.
Layout is NHWC and all is float32. BatchNorm is folded into the convolutions: weights/extractors.py.

Parameters are named as in PyTorch's state dict. A layer is written (features, kernel size, stride).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SIZE = 299
FEATURES = 2048

_TALL, _WIDE = (7, 1), (1, 7)

Layer = tuple[int, tuple[int, int]] | tuple[int, tuple[int, int], int]


class Inception(nn.Module):
  """images [N, 299, 299, 3] in [-1, 1] -> the mean over positions of the last block, `pool3`."""

  @nn.compact
  def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N 2048"]:
    x = _conv(images, "Conv2d_1a_3x3", 32, (3, 3), 2)
    x = _conv(x, "Conv2d_2a_3x3", 32, (3, 3), padding="VALID")
    x = _shrink(_conv(x, "Conv2d_2b_3x3", 64, (3, 3)))
    x = _conv(x, "Conv2d_3b_1x1", 80)
    x = _shrink(_conv(x, "Conv2d_4a_3x3", 192, (3, 3), padding="VALID"))
    for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
      x = BlockA(pooled, name=f"Mixed_{name}")(x)
    x = BlockB(name="Mixed_6a")(x)
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x = BlockC(width, name=f"Mixed_{name}")(x)
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(_average, name="Mixed_7b")(x)
    x = BlockE(_maximum, name="Mixed_7c")(x)
    return x.mean(axis=(1, 2))


class BlockA(nn.Module):
  """35 x 35 positions: 1x1, 5x5, two 3x3, pooled."""

  pooled: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return _join(
      _conv(x, "branch1x1", 64),
      _chain(x, "branch5x5", (48, (1, 1)), (64, (5, 5))),
      _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
      _conv(_average(x), "branch_pool", self.pooled),
    )


class BlockB(nn.Module):
  """35 x 35 -> 17 x 17."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return _join(
      _conv(x, "branch3x3", 384, (3, 3), 2),
      _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3), 2)),
      _shrink(x),
    )


class BlockC(nn.Module):
  """17 x 17: 1x1, 7x7 as 1x7 and 7x1, two of these, pooled."""

  width: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    narrow, tall, wide = (self.width, (1, 1)), (self.width, _TALL), (self.width, _WIDE)
    return _join(
      _conv(x, "branch1x1", 192),
      _chain(x, "branch7x7", narrow, wide, (192, _TALL)),
      _chain(x, "branch7x7dbl", narrow, tall, wide, tall, (192, _WIDE)),
      _conv(_average(x), "branch_pool", 192),
    )


class BlockD(nn.Module):
  """17 x 17 -> 8 x 8."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return _join(
      _chain(x, "branch3x3", (192, (1, 1)), (320, (3, 3), 2)),
      _chain(x, "branch7x7x3", (192, (1, 1)), (192, _WIDE), (192, _TALL), (192, (3, 3), 2)),
      _shrink(x),
    )


class BlockE(nn.Module):
  """8 x 8: 1x1, 3x3 and two 3x3 whose last is 1x3 beside 3x1, pooled."""

  pool: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    once = _conv(x, "branch3x3_1", 384)
    twice = _chain(x, "branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    return _join(
      _conv(x, "branch1x1", 320),
      _conv(once, "branch3x3_2a", 384, (1, 3)),
      _conv(once, "branch3x3_2b", 384, (3, 1)),
      _conv(twice, "branch3x3dbl_3a", 384, (1, 3)),
      _conv(twice, "branch3x3dbl_3b", 384, (3, 1)),
      _conv(self.pool(x), "branch_pool", 192),
    )


def _conv(
  x: Array,
  name: str,
  features: int,
  size: tuple[int, int] = (1, 1),
  stride: int = 1,
  padding: str = "",
) -> Array:
  """relu(W * x + b); where the stride is 1 the size stays, where it is 2 nothing is padded."""
  padding = padding or ("SAME" if stride == 1 else "VALID")
  return nn.relu(nn.Conv(features, size, stride, padding, name=name)(x))


def _chain(x: Array, name: str, *layers: Layer) -> Array:
  """The layers NAME_1, NAME_2, ... in a row."""
  for i, layer in enumerate(layers, start=1):
    x = _conv(x, f"{name}_{i}", *layer)
  return x


def _average(x: Array) -> Array:
  return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _shrink(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (2, 2))


def _join(*branches: Array) -> Array:
  return jnp.concatenate(branches, axis=-1)


@jax.jit
def features(params: Any, images: Float[Array, "N H W 3"]) -> Float[Array, "N 2048"]:
  """`Inception`'s features, in full float32 on accelerators too."""
  with jax.default_matmul_precision("highest"):
    out: Any = Inception().apply({"params": params}, images)
    return out
