"""ViT, a classifier of pictures (Dosovitskiy et al., ICLR 2021): the equal of timm's.

    block(x) = h + mlp(LN(h)),   h = x + attention(LN(x));   x = [class token, patches] + places
    logits   = head(LN(x)[class token])

The default is vit_large_patch16_224. Parameters are named as in timm's state dict.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.inputs import ranges
from jaxunlearn.models import attention
from jaxunlearn.models.unet_blocks import Conv, Linear

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Vit:
  classes: ranges.Count = 51
  size: ranges.Count = 224  # pixels a side
  patch: ranges.Count = 16
  width: ranges.Count = 1024
  depth: ranges.Count = 24
  heads: ranges.Count = 16

  def init(self, key: Array) -> Any:
    """Random parameters, a nested dict of float32 arrays."""
    return _Vit(self).init(key, jnp.zeros((1, self.size, self.size, 3)))["params"]

  def apply(
    self, params: Any, images: Float[Array, "B H W 3"]
  ) -> tuple[Float[Array, "B K"], Float[Array, "B D"]]:
    """Logits of normalised images, and the class token's state behind the last norm."""
    return _Vit(self).apply({"params": params}, images)  # type: ignore[return-value]


class _Vit(nn.Module):
  net: Vit

  @nn.compact
  def __call__(self, images: Array) -> tuple[Array, Array]:
    net, p = self.net, self.net.patch
    valid = ((0, 0), (0, 0))
    patches = Conv(net.width, size=p, stride=p, padding=valid, name="patch_embed_proj")(images)
    x = patches.reshape(len(images), -1, net.width)
    normal = nn.initializers.normal(0.02)
    first = self.param("cls_token", normal, (1, 1, net.width))
    x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, net.width)), x], axis=1)
    x = x + self.param("pos_embed", normal, (1, x.shape[1], net.width))
    for i in range(net.depth):
      x = _Block(net, name=f"blocks_{i}")(x)
    feature = _norm("norm")(x)[:, 0]
    return Linear(net.classes, name="head")(feature), feature


class _Block(nn.Module):
  net: Vit

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x + _Attention(self.net, name="attn")(_norm("norm1")(x))
    return x + _Mlp(self.net, name="mlp")(_norm("norm2")(x))


class _Attention(nn.Module):
  net: Vit

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, length, width = x.shape
    qkv = Linear(3 * width, name="qkv")(x).reshape(b, length, 3, self.net.heads, -1)
    y = attention.attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
    return Linear(width, name="proj")(y.reshape(x.shape))


class _Mlp(nn.Module):
  net: Vit

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = jax.nn.gelu(Linear(4 * self.net.width, name="fc1")(x), approximate=False)
    return Linear(self.net.width, name="fc2")(h)


def _norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(EPS, use_fast_variance=False, name=name)
