"""The UNet of Stable Diffusion (Rombach et al., 2022): diffusers' `UNet2DConditionModel`.

    block(x) = h2 + ff(LN(h2)),   h2 = h1 + attn2(LN(h1), states),   h1 = x + attn1(LN(x))
    ff(x)    = W2 (u * gelu(g)) + b2,   [u, g] = W1 x + b1

It is models/unet.py's UNet, whose attention over pixels is a transformer that also reads the states
of a text, [B, L, cross_attention_dim]. Parameters are named by the same rule. `attention_head_dim`
is the number of heads, as in all published configs. Text states have no mask: paddings are read.

With `remat` each block is computed again in the backward pass, and keeps its inputs alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxunlearn import errors
from jaxunlearn.inputs import ranges
from jaxunlearn.models import attention, unet_blocks
from jaxunlearn.models.unet import DTYPES
from jaxunlearn.models.unet_blocks import Conv, GroupNorm, Linear, TimeEmbedding

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclasses.dataclass(frozen=True)
class Net:
  """The fields of diffusers' `config.json`, under its names. The default is Stable Diffusion 1."""

  sample_size: ranges.Count = 64  # of the latent
  in_channels: ranges.Count = 4
  out_channels: ranges.Count = 4
  block_out_channels: Sequence[ranges.Count] = (320, 640, 1280, 1280)
  down_block_types: Sequence[str] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
  up_block_types: Sequence[str] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
  layers_per_block: ranges.Count = 2
  attention_head_dim: ranges.Count | Sequence[ranges.Count] = 8  # heads, of all levels or of each
  cross_attention_dim: ranges.Count = 768
  use_linear_projection: bool = False
  norm_num_groups: ranges.Count = 32
  norm_eps: ranges.Above0 = 1e-5
  downsample_padding: Annotated[int, ranges.Range(0, 1, whole=True)] = 1
  flip_sin_to_cos: bool = True
  freq_shift: Annotated[int, ranges.Range(0, 1, whole=True)] = 0
  dropout: ranges.Under1 = 0.0
  remat: bool = False
  dtype: str = "float32"

  # What the layers of unet_blocks.py read, the same in all of these.
  resnet_time_scale_shift = "default"
  downsample_type = upsample_type = "conv"

  def __post_init__(self) -> None:
    for field in ("block_out_channels", "down_block_types", "up_block_types"):
      object.__setattr__(self, field, tuple(getattr(self, field)))
    if not isinstance(self.attention_head_dim, int):
      object.__setattr__(self, "attention_head_dim", tuple(self.attention_head_dim))
    ranges.check(self)
    levels = len(self.block_out_channels)
    for field, choices in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
      if len(getattr(self, field)) != levels:
        raise ValueError(
          f"{field} has {len(getattr(self, field))} blocks and block_out_channels {levels}; "
          "give one block type per level"
        )
      for block in getattr(self, field):
        errors.check_choice(f"block of {field}", block, choices)
    if len(self.heads) != levels:
      raise ValueError(
        f"attention_head_dim has {len(self.heads)} numbers of heads and block_out_channels "
        f"{levels} levels; give one number, or one per level"
      )
    for width, heads in zip(self.block_out_channels, self.heads, strict=True):
      if width % self.norm_num_groups or width % heads:
        raise ValueError(
          f"block_out_channels {width} does not divide into norm_num_groups "
          f"{self.norm_num_groups} and into {heads} heads; use a multiple of both"
        )
    unit = 2 ** (levels - 1)
    if self.sample_size % unit:
      raise ValueError(f"sample_size is {self.sample_size}; use a multiple of {unit}")
    errors.check_choice("dtype", self.dtype, DTYPES)

  @property
  def heads(self) -> tuple[int, ...]:
    """How many heads each level has, from the finest."""
    heads = self.attention_head_dim
    return (heads,) * len(self.block_out_channels) if isinstance(heads, int) else tuple(heads)

  def attention(self, level: int, name: str) -> nn.Module:
    """Among pixels, and to the text; in the middle with the coarsest level's heads."""
    return Transformer(self, self.heads[level], name=name)

  @property
  def time_width(self) -> int:
    """Of the embedding of time."""
    return 4 * self.block_out_channels[0]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return (self.sample_size, self.sample_size, self.in_channels)

  def init(self, key: Array) -> Any:
    """Random parameters, a nested dict of float32 arrays."""
    states = jnp.zeros((1, 1, self.cross_attention_dim))
    x, t = jnp.zeros((1, *self.image_shape)), jnp.zeros(1, jnp.int32)
    return TextUNet(self).init(key, x, t, states)["params"]

  def apply(
    self,
    params: Any,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Float[Array, "B L D"],
  ) -> Float[Array, "B H W D2"]:
    """What the network predicts of the latent x at the times t, float32, for text states c."""
    return TextUNet(self).apply({"params": params}, x, t, c)  # type: ignore[return-value]


class TextUNet(nn.Module):
  """[B, H, W, C] latents, [B] times, [B, L, D] text states -> [B, H, W, C], float32."""

  net: Net

  @nn.compact
  def __call__(self, x: Array, t: Array, states: Array) -> Array:
    net = self.net
    temb = TimeEmbedding(net, name="time_embedding")(t)
    states = states.astype(net.dtype)
    return unet_blocks.unet(net, x, temb, states, features=net.out_channels, remat=net.remat)


class Transformer(nn.Module):
  """x + proj_out(block(proj_in(norm(x)))) over pixels: `Transformer2DModel` of one block."""

  net: Net
  heads: int

  @nn.compact
  def __call__(self, x: Array, states: Array) -> Array:
    b, h, w, channels = x.shape
    normed = dataclasses.replace(self.net, norm_eps=1e-6)  # here alone, as in all published models
    y = GroupNorm(normed, silu=False, name="norm")(x)
    y = self._project("proj_in", channels)(y).reshape(b, h * w, channels)
    y = Block(self.net, self.heads, name="transformer_blocks_0")(y, states)
    return x + self._project("proj_out", channels)(y.reshape(x.shape))

  def _project(self, name: str, channels: int) -> nn.Module:
    """The same function twice: its kernel has four axes where it is stored as a convolution."""
    if self.net.use_linear_projection:
      return Linear(channels, dtype=self.net.dtype, name=name)
    return Conv(channels, size=1, dtype=self.net.dtype, name=name)


class Block(nn.Module):
  """Attention among pixels, attention to the text, a gated layer, each with a residual."""

  net: Net
  heads: int

  @nn.compact
  def __call__(self, x: Array, states: Array) -> Array:
    norm = lambda name: nn.LayerNorm(1e-5, use_fast_variance=False, dtype=self.net.dtype, name=name)
    y = norm("norm1")(x)
    x = x + CrossAttention(self.net, self.heads, name="attn1")(y, y)
    x = x + CrossAttention(self.net, self.heads, name="attn2")(norm("norm2")(x), states)
    return x + FeedForward(self.net, name="ff")(norm("norm3")(x))


class CrossAttention(nn.Module):
  """[B, Q, D] queries and [B, K, E] that they read -> [B, Q, D]."""

  net: Net
  heads: int

  @nn.compact
  def __call__(self, x: Array, read: Array) -> Array:
    width = x.shape[-1]
    split = lambda name, y: Linear(width, bias=False, dtype=self.net.dtype, name=name)(y).reshape(
      *y.shape[:2], self.heads, -1
    )
    y = attention.attend(split("to_q", x), split("to_k", read), split("to_v", read))
    return Linear(width, dtype=self.net.dtype, name="to_out_0")(y.reshape(x.shape))


class FeedForward(nn.Module):
  """W2 (u * gelu(g)) + b2, with the exact gelu; four times as wide inside."""

  net: Net

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = Gated(self.net, 4 * x.shape[-1], name="net_0")(x)
    return Linear(x.shape[-1], dtype=self.net.dtype, name="net_2")(h)


class Gated(nn.Module):
  """u * gelu(g), the halves of one linear layer."""

  net: Net
  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = Linear(2 * self.features, dtype=self.net.dtype, name="proj")(x)
    u, g = jnp.split(h, 2, axis=-1)
    return u * jax.nn.gelu(g, approximate=False)
