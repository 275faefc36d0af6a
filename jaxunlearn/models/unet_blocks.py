"""Layers of UNets and autoencoders, under the names of diffusers' modules.

Each reads its own fields of `net`, the `Net` of the whole. `net.attention(level, name)` is its
layer of attention at a level, counted from the finest, or in the middle.
"""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn.diffusion import NULL
from jaxunlearn.models import attention, convolution, product

MIDDLE = -1  # the level between the way down and the way up


class Conv(nn.Module):
  """A convolution. 1x1 kernels run as one matrix product, which XLA does faster."""

  features: int
  size: int = 3
  stride: int = 1
  padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
  doubled: bool = False  # of x doubled by nearest neighbour
  bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", _torch_uniform(np.prod(shape[:3])), shape).astype(self.dtype)
    bias: Any = 0
    if self.bias:
      bias = self.param("bias", _torch_uniform(np.prod(shape[:3])), shape[3:]).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.size == 1:
      return product.multiply(x, kernel[0, 0]) + bias
    if self.doubled:
      return _conv_doubled(x, kernel) + bias
    if self.stride == 1:
      return convolution.convolve(x, kernel, self.padding) + bias
    y = jax.lax.conv_general_dilated(
      x, kernel, (self.stride,) * 2, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + bias


class Linear(nn.Module):
  """`nn.Linear`: x W + b over the last axis."""

  features: int
  bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", _torch_uniform(shape[0]), shape).astype(self.dtype)
    y = product.multiply(x.astype(self.dtype), kernel)
    if not self.bias:
      return y
    return y + self.param("bias", _torch_uniform(shape[0]), shape[1:]).astype(self.dtype)


class GroupNorm(nn.Module):
  """Group normalisation, with optional SiLU; statistics in float32, by per-channel sums first."""

  net: Any
  silu: bool = True
  groups: int = 0  # 0: net.norm_num_groups

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels, groups = x.shape[-1], self.groups or self.net.norm_num_groups
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    flat = x.reshape(len(x), -1, channels).astype(jnp.float32)
    per_group = lambda v: jnp.repeat(
      v.reshape(-1, groups, channels // groups).mean(2), channels // groups, axis=1
    )
    mean = per_group(flat.mean(1))
    centred = flat - mean[:, None]
    gain = scale * jax.lax.rsqrt(per_group(jnp.square(centred).mean(1)) + self.net.norm_eps)
    y = centred * gain[:, None] + bias
    y = jax.nn.silu(y) if self.silu else y
    return y.reshape(x.shape).astype(self.net.dtype)


class ResnetBlock(nn.Module):
  """x + conv(drop(act(norm(conv(act(norm(x))) + W act(temb))))), 1x1 shortcut where C changes.

  Under scale_shift W act(temb) is (a, b), and norm(h) (1 + a) + b stands for norm(h + W act(temb)).
  `resample` "up" doubles and "down" halves x and act(norm(x)). Without temb no time is told.
  """

  net: Any
  features: int
  resample: str = ""

  @nn.compact
  def __call__(self, x: Array, temb: Array | None = None) -> Array:
    dtype, doubled = self.net.dtype, self.resample == "up"
    h = GroupNorm(self.net, name="norm1")(x)
    if self.resample == "down":
      x, h = (einops.reduce(v, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2) for v in (x, h))
    h = Conv(self.features, doubled=doubled, dtype=dtype, name="conv1")(h)
    x = einops.repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2) if doubled else x
    h = GroupNorm(self.net, name="norm2")(h) if temb is None else self._timed(h, jax.nn.silu(temb))
    h = nn.Dropout(self.net.dropout, deterministic=not self.has_rng("dropout"))(h)
    h = Conv(self.features, dtype=dtype, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = Conv(self.features, size=1, dtype=dtype, name="conv_shortcut")(x)
    return x + h

  def _timed(self, h: Array, temb: Array) -> Array:
    """act(norm(h)), told of the time."""
    scaled = self.net.resnet_time_scale_shift == "scale_shift"
    width = self.features * (1 + scaled)
    told = Linear(width, dtype=self.net.dtype, name="time_emb_proj")(temb)[:, None, None, :]
    if not scaled:
      return GroupNorm(self.net, name="norm2")(h + told)
    scale, shift = jnp.split(told, 2, axis=-1)
    return jax.nn.silu(GroupNorm(self.net, silu=False, name="norm2")(h) * (1 + scale) + shift)


class Attention(nn.Module):
  """Self-attention over pixels with a residual; softmax in float32.

  As many heads of attention_head_dim as fit into the width.
  """

  net: Any
  groups: int | None  # of the norm before it; None: no norm

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, h, w, channels = x.shape
    dim = self.net.attention_head_dim or channels
    heads = channels // dim
    y = x
    if self.groups is not None:
      y = GroupNorm(self.net, silu=False, groups=self.groups, name="group_norm")(x)
    y = y.reshape(b, h * w, channels)
    dense = lambda name, width: Linear(width, dtype=self.net.dtype, name=name)
    split = lambda name: dense(name, heads * dim)(y).reshape(b, h * w, heads, dim)
    q, k, v = (split(name) for name in ("to_q", "to_k", "to_v"))
    y = attention.attend(q, k, v)
    return x + dense("to_out_0", channels)(y.reshape(b, h * w, heads * dim)).reshape(x.shape)


class Downsample(nn.Module):
  """A 3x3 convolution of stride 2; padding 0 pads the far edges only, as diffusers does."""

  net: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    pad = (1, 1) if self.net.downsample_padding else (0, 1)
    return Conv(x.shape[-1], stride=2, padding=(pad, pad), dtype=self.net.dtype, name="conv")(x)


class Upsample(nn.Module):
  """Nearest-neighbour doubling, then a 3x3 convolution."""

  net: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return Conv(x.shape[-1], doubled=True, dtype=self.net.dtype, name="conv")(x)


def unet(net: Any, x: Array, temb: Array, *states: Array, features: int, remat: bool) -> Array:
  """A UNet's layers on [B, H, W, C], in the module that calls it: [B, H, W, features], float32.

  Its attention, `net.attention`, reads the pixels and the states. With `remat` each block is
  computed again in the backward pass, and keeps its inputs alone.
  """
  whole = nn.remat if remat else lambda block: block
  x = Conv(net.block_out_channels[0], dtype=net.dtype, name="conv_in")(x)
  skips = [x]
  for i in range(len(net.block_out_channels)):
    x, new = whole(DownBlock)(net, i, name=f"down_blocks_{i}")(x, temb, *states)
    skips += new
  x = whole(MidBlock)(net, name="mid_block")(x, temb, *states)
  for i in range(len(net.block_out_channels)):
    own = [skips.pop() for _ in range(net.layers_per_block + 1)]
    x = whole(UpBlock)(net, i, name=f"up_blocks_{i}")(x, own, temb, *states)
  x = GroupNorm(net, name="conv_norm_out")(x)
  return Conv(features, dtype=net.dtype, name="conv_out")(x).astype(jnp.float32)


class DownBlock(nn.Module):
  """`layers_per_block` residual blocks (with attention in Attn and CrossAttn), then halving.

  A residual block halves in ResnetDownsampleBlock2D, and in AttnDownBlock2D on downsample_type
  resnet.
  """

  net: Any
  level: int

  @nn.compact
  def __call__(self, x: Array, temb: Array, *states: Array) -> tuple[Array, list[Array]]:
    net, skips = self.net, []
    kind, features = net.down_block_types[self.level], net.block_out_channels[self.level]
    attends = "Attn" in kind
    for i in range(net.layers_per_block):
      x = ResnetBlock(net, features, name=f"resnets_{i}")(x, temb)
      if attends:
        x = net.attention(self.level, f"attentions_{i}")(x, *states)
      skips.append(x)
    if self.level < len(net.block_out_channels) - 1:
      if kind == "ResnetDownsampleBlock2D" or (attends and net.downsample_type == "resnet"):
        x = ResnetBlock(net, features, "down", name="downsamplers_0")(x, temb)
      else:
        x = Downsample(net, name="downsamplers_0")(x)
      skips.append(x)
    return x, skips


class MidBlock(nn.Module):
  """Residual block, attention, residual block."""

  net: Any

  @nn.compact
  def __call__(self, x: Array, temb: Array | None = None, *states: Array) -> Array:
    x = ResnetBlock(self.net, x.shape[-1], name="resnets_0")(x, temb)
    x = self.net.attention(MIDDLE, "attentions_0")(x, *states)
    return ResnetBlock(self.net, x.shape[-1], name="resnets_1")(x, temb)


class UpBlock(nn.Module):
  """A residual block on [x, skip] for each skip, attention in Attn and CrossAttn, doubling.

  A residual block doubles in ResnetUpsampleBlock2D, and in AttnUpBlock2D on upsample_type resnet.
  """

  net: Any
  level: int  # 0 is the coarsest

  @nn.compact
  def __call__(self, x: Array, skips: list[Array], temb: Array, *states: Array) -> Array:
    net, fine = self.net, len(self.net.block_out_channels) - 1 - self.level
    kind, features = net.up_block_types[self.level], net.block_out_channels[fine]
    attends = "Attn" in kind
    for i, skip in enumerate(skips):
      x = jnp.concatenate([x, skip], axis=-1)
      x = ResnetBlock(net, features, name=f"resnets_{i}")(x, temb)
      if attends:
        x = net.attention(fine, f"attentions_{i}")(x, *states)
    if not fine:
      return x
    if kind == "ResnetUpsampleBlock2D" or (attends and net.upsample_type == "resnet"):
      return ResnetBlock(net, features, "up", name="upsamplers_0")(x, temb)
    return Upsample(net, name="upsamplers_0")(x)


class TimeEmbedding(nn.Module):
  """linear_2(silu(linear_1(sinusoids of t))): [B] -> [B, time_width]."""

  net: Any

  @nn.compact
  def __call__(self, t: Array) -> Array:
    net, width = self.net, self.net.time_width
    h = sinusoids(t, net.block_out_channels[0], net.freq_shift, net.flip_sin_to_cos)
    h = Linear(width, dtype=net.dtype, name="linear_1")(h)
    return Linear(width, dtype=net.dtype, name="linear_2")(jax.nn.silu(h))


class ClassEmbedding(nn.Module):
  """linear_2(silu(linear_1(row c of a table))): [B] -> [B, time_width]; the last row is NULL."""

  net: Any
  values: int

  @nn.compact
  def __call__(self, c: Array) -> Array:
    width, wide = self.net.block_out_channels[0], self.net.time_width
    table = self.param("embedding", nn.initializers.normal(1.0), (self.values + 1, width))
    h = table[jnp.where(c == NULL, self.values, c)].astype(self.net.dtype)
    h = Linear(wide, dtype=self.net.dtype, name="linear_1")(h)
    return Linear(wide, dtype=self.net.dtype, name="linear_2")(jax.nn.silu(h))


class ClassTable(nn.Module):
  """Row c of a table of num_class_embeds, as diffusers has it: [B] -> [B, time_width].

  NULL is the last row where that is no class, else 0.
  """

  net: Any

  @nn.compact
  def __call__(self, c: Array) -> Array:
    rows, values = self.net.num_class_embeds, self.net.classes[0]
    shape = (rows, self.net.time_width)
    table = self.param("embedding", nn.initializers.normal(1.0), shape).astype(self.net.dtype)
    null = table[-1] if rows > values else 0
    return jnp.where((c == NULL)[:, None], null, table[jnp.maximum(c, 0)])


def sinusoids(t: Array, width: int, freq_shift: int, flip_sin_to_cos: bool) -> Array:
  """[B] (int or float time) -> [B, width]: sin and cos of t 10000^(-k / (width/2 - freq_shift)).

  An odd width ends in a 0.
  """
  half = width // 2
  freqs = np.exp(-np.log(10000.0) * np.arange(half) / (half - freq_shift)).astype(np.float32)
  angles = t.astype(jnp.float32)[:, None] * freqs
  waves = (
    [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
  )
  if width % 2:
    waves.append(jnp.zeros((len(t), 1)))
  return jnp.concatenate(waves, axis=-1)


def _conv_doubled(x: Array, kernel: Array) -> Array:
  """conv(doubled x), 3x3, without the doubled image: 4/9 of the multiplications.

  An output pixel sees 2 x 2 distinct input pixels, so that each of its four phases (p, q) is a
  2x2 convolution whose taps are sums of the kernel's.
  """
  taps = lambda k, p: jnp.stack([k[0] + k[1], k[2]] if p else [k[0], k[1] + k[2]])
  phase = lambda p, q: convolution.convolve(
    x, jnp.swapaxes(taps(jnp.swapaxes(taps(kernel, p), 0, 1), q), 0, 1), ((1 - p, p), (1 - q, q))
  )
  rows = [jnp.stack([phase(p, 0), phase(p, 1)], axis=3) for p in (0, 1)]
  return einops.rearrange(jnp.stack(rows, axis=2), "b h p w q c -> b (h p) (w q) c")


def _torch_uniform(fan_in: Any) -> Any:
  """PyTorch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
  bound = float(fan_in) ** -0.5
  return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
