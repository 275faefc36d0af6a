"""CLIP's ResNet-50 for pictures of any size (Radford et al., 2021), as CLIP-IQA takes it.

    stem        three 3x3 convolutions, the first of stride 2, and a mean of 2 x 2
    stages      ResNet-50's bottlenecks, whose strides are means of 2 x 2 before the last
                convolution and before the shortcut's
    pooling     attention: the mean of all positions asks, it and all positions answer

Without position embeddings in the pooling (Wang et al., 2023), so that no picture is resized.
BatchNorm is that of inference. Layout is NHWC. Parameters are named as OpenAI's, an index joined by
an underscore.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.models.resnet import BatchNorm


@dataclasses.dataclass(frozen=True)
class Size:
  """Of the network; the default is that of RN50."""

  blocks: Sequence[int] = (3, 4, 6, 3)
  width: int = 64
  heads: int = 32
  output: int = 1024


class ResNet(nn.Module):
  """images [N, H, W, 3], normalised as CLIP's -> vectors in the space shared with texts."""

  size: Size = Size()

  @nn.compact
  def __call__(self, images: Float[Array, "N H W 3"]) -> Float[Array, "N P"]:
    size, x = self.size, images
    for i, (width, stride) in enumerate(
      ((size.width // 2, 2), (size.width // 2, 1), (size.width, 1)), start=1
    ):
      x = nn.relu(BatchNorm(name=f"bn{i}")(_conv(width, 3, stride, f"conv{i}")(x)))
    x = _halved(x, 2)
    for i, blocks in enumerate(size.blocks):
      for j in range(blocks):
        stride = 2 if i > 0 and j == 0 else 1
        x = Bottleneck(size.width * 2**i, stride, j == 0, name=f"layer{i + 1}_{j}")(x)
    return AttentionPool(size.heads, size.output, name="attnpool")(x)


class Bottleneck(nn.Module):
  """Four times as wide outside as inside."""

  width: int
  stride: int
  shortcut: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = nn.relu(BatchNorm(name="bn1")(_conv(self.width, 1, 1, "conv1")(x)))
    h = nn.relu(BatchNorm(name="bn2")(_conv(self.width, 3, 1, "conv2")(h)))
    h = BatchNorm(name="bn3")(_conv(4 * self.width, 1, 1, "conv3")(_halved(h, self.stride)))
    if self.shortcut:
      x = _conv(4 * self.width, 1, 1, "downsample_0")(_halved(x, self.stride))
      x = BatchNorm(name="downsample_1")(x)
    return nn.relu(x + h)


class AttentionPool(nn.Module):
  """[N, H, W, C] -> [N, P]."""

  heads: int
  output: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    n, _, _, channels = x.shape
    x = x.reshape(n, -1, channels)
    mean = x.mean(axis=1, keepdims=True)
    x = jnp.concatenate([mean, x], axis=1)
    split = (n, -1, self.heads, channels // self.heads)
    dense = lambda name, y: nn.Dense(channels, name=name)(y).reshape(split)
    q, k, v = dense("q_proj", mean), dense("k_proj", x), dense("v_proj", x)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * split[-1] ** -0.5
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return nn.Dense(self.output, name="c_proj")(y.reshape(n, channels))


def _conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
  padding = ((size // 2, size // 2),) * 2
  return nn.Conv(features, (size, size), stride, padding, use_bias=False, name=name)


def _halved(x: Array, stride: int) -> Array:
  return nn.avg_pool(x, (stride, stride), (stride, stride)) if stride > 1 else x
