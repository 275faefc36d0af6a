"""SSCD: a ResNet-50 that describes images for copy detection (Pizzi et al., 2022).

    trunk       He et al. (2016), with torchvision's stride in the 3x3 convolutions ("v1.5")
    GeM         f_c = (mean_hw max(x_hwc, 1e-6)^p)^(1/p),  p = 3
    descriptor  d = (W f + b) / ||W f + b||

Two images are alike as far as the product of their descriptors is near 1. Layout is NHWC, and all
is float32. BatchNorm is that of inference: its statistics are parameters like the others.

Parameters are named as in torchvision's state dict, an index joined by an underscore:
`layer1.0.conv1.weight` is `layer1_0/conv1/kernel`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCKS = (3, 4, 6, 3)  # of each stage of ResNet-50
WIDTH = 64
DESCRIPTOR = 512

_EPS = 1e-5  # torch's BatchNorm2d


class Sscd(nn.Module):
  """images [N, H, W, 3] of any size, normalised as ImageNet's -> descriptors of length 1."""

  @nn.compact
  def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N 512"]:
    x = nn.relu(BatchNorm(name="bn1")(_conv(WIDTH, 7, 2, "conv1")(images)))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for i, blocks in enumerate(BLOCKS):
      for j in range(blocks):
        stride = 2 if i > 0 and j == 0 else 1
        x = Bottleneck(WIDTH * 2**i, stride, shortcut=j == 0, name=f"layer{i + 1}_{j}")(x)
    d = nn.Dense(DESCRIPTOR, name="fc")(gem(x))
    return d / jnp.maximum(jnp.linalg.norm(d, axis=-1, keepdims=True), 1e-12)


class Bottleneck(nn.Module):
  """relu(x + bn(1x1(relu(bn(3x3(relu(bn(1x1(x)))))))), four times as wide outside as inside."""

  width: int
  stride: int
  shortcut: bool  # x goes through a strided 1x1 convolution

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = nn.relu(BatchNorm(name="bn1")(_conv(self.width, 1, 1, "conv1")(x)))
    h = nn.relu(BatchNorm(name="bn2")(_conv(self.width, 3, self.stride, "conv2")(h)))
    h = BatchNorm(name="bn3")(_conv(4 * self.width, 1, 1, "conv3")(h))
    if self.shortcut:
      x = _conv(4 * self.width, 1, self.stride, "downsample_0")(x)
      x = BatchNorm(name="downsample_1")(x)
    return nn.relu(x + h)


class BatchNorm(nn.Module):
  """(x - mean) / sqrt(var + eps) scale + bias, of each channel."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (x.shape[-1],)
    scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
    mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
    return (x - mean) * (scale * jax.lax.rsqrt(var + _EPS)) + bias


def gem(x: Float[Array, "N H W C"], p: float = 3.0) -> Float[Array, "N C"]:
  """Generalised mean over the positions: p = 1 is the mean, a large p the maximum."""
  return jnp.mean(jnp.maximum(x, 1e-6) ** p, axis=(1, 2)) ** (1 / p)


@jax.jit
def describe(params: Any, images: Float[Array, "N H W 3"]) -> Float[Array, "N 512"]:
  """The descriptors, in full float32 on accelerators too."""
  with jax.default_matmul_precision("highest"):
    d: Any = Sscd().apply({"params": params}, images)
  return d


def _conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
  padding = ((size // 2, size // 2),) * 2
  return nn.Conv(features, (size, size), stride, padding, use_bias=False, name=name)
