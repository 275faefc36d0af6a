"""The UNet of DDPM in Flax: the equal of diffusers' `UNet2DModel` (Ho et al., 2020, appendix B).

Parameters are named as in its PyTorch state dict, a list index joined by an underscore
(`down_blocks.0.resnets.1.conv1.weight` is `down_blocks_0/resnets_1/conv1/kernel`), so that
`weights/pretrained.py` maps both ways by rule. Layout is NHWC; diffusers' is NCHW.

With `classes` it is the class-conditional UNet of the unlearning papers (not in diffusers): each
condition has a table of embeddings whose last row is the learned null, an MLP of its own like
time's, and the results stand beside time's in what each residual block reads.

With `dropout` each residual block drops a share of its activations before its last convolution,
while training only: where `apply` gets `rows`, one seed a row, from which the row's masks follow
wherever in the batch it stands.

Parameters, group-norm statistics, attention weights and the output are float32; `dtype` is the
type of the other activations and of the weights while they are used (bfloat16 on accelerators).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real, UInt32

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL
from jaxunlearn.models import attention
from jaxunlearn.models.predictor import Predictor

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")
DTYPES = ("float32", "bfloat16")
_POSITIVE = (
  "sample_size",
  "in_channels",
  "out_channels",
  "layers_per_block",
  "attention_head_dim",
  "norm_num_groups",
  "patch_size",
)


@dataclasses.dataclass(frozen=True)
class Net(Predictor):
  """The fields of diffusers' `config.json`, under its names; sequences are kept as tuples."""

  sample_size: int = 28
  in_channels: int = 1
  out_channels: int = 1
  block_out_channels: Sequence[int] = (64, 128, 256)
  down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
  up_block_types: Sequence[str] = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
  layers_per_block: int = 2
  attention_head_dim: int | None = 8  # None: one head as wide as the block
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  downsample_padding: int = 1
  patch_size: int = 1  # p > 1 folds p x p pixels into channels first (not in diffusers; cheap)
  flip_sin_to_cos: bool = True
  freq_shift: int = 0
  dropout: float = 0.0  # share of a residual block's activations that a training step drops
  classes: Sequence[int] = ()  # how many values each condition has; (): unconditional
  dtype: str = "float32"

  def __post_init__(self) -> None:
    for field in ("block_out_channels", "down_block_types", "up_block_types", "classes"):
      object.__setattr__(self, field, tuple(getattr(self, field)))
    levels = len(self.block_out_channels)
    for field in _POSITIVE:
      value = getattr(self, field)
      if value is not None and value < 1:
        raise ValueError(f"{field} is {value}; use at least 1")
    if self.downsample_padding not in (0, 1):
      raise ValueError(f"downsample_padding is {self.downsample_padding}; use 0 or 1")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is {self.dropout}; use a share of at least 0 and under 1")
    if any(count < 1 for count in self.classes):
      raise ValueError(f"classes is {self.classes}; give at least 1 value to each condition")
    errors.check_choice("dtype", self.dtype, DTYPES)
    for field, choices in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
      types = getattr(self, field)
      if len(types) != levels:
        raise ValueError(
          f"{field} has {len(types)} blocks and block_out_channels {levels}; "
          "give one block type per level"
        )
      for block in types:
        errors.check_choice(f"block of {field}", block, choices)
    for width in self.block_out_channels:
      if width % self.norm_num_groups:
        raise ValueError(
          f"block_out_channels {width} does not divide into norm_num_groups "
          f"{self.norm_num_groups}; use a multiple"
        )
      if width % (self.attention_head_dim or width):
        raise ValueError(
          f"block_out_channels {width} does not divide into heads of attention_head_dim "
          f"{self.attention_head_dim}; use a divisor"
        )
    unit = self.patch_size * 2 ** (levels - 1)
    if self.sample_size % unit:
      raise ValueError(
        f"sample_size {self.sample_size} with patch_size {self.patch_size} cannot be halved "
        f"{levels - 1} times; use a multiple of {unit}"
      )

  def init(self, key: Array) -> Any:
    """Random parameters, a nested dict of float32 arrays."""
    x = _fold(jnp.zeros((1, *self.image_shape)), self.patch_size)
    zeros = jnp.zeros(1, jnp.int32)
    c = jnp.zeros((1, len(self.classes)), jnp.int32)
    return UNet(self).init(key, x, zeros, c)["params"]

  def apply(
    self,
    params: Any,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Array | None = None,
    rows: UInt32[Array, " B"] | None = None,
  ) -> Float[Array, "B H W D"]:
    """The predicted noise, float32, of x at the whole or broken times t, under conditions c.

    Args:
      c: int32 [B], or [B, n] for n > 1 conditions; NULL (-1) is no condition, and None none in all.
      rows: the seeds of the rows' dropout masks; None drops nothing.

    Raises:
      ValueError: conditions for an unconditional network, or of another number.
    """
    inputs = (_fold(x, self.patch_size), t, self.conditions(x, c))
    predict = lambda *inputs, **rngs: UNet(self).apply({"params": params}, *inputs, rngs=rngs)
    if rows is None or not self.dropout:
      eps: Any = predict(*inputs)
    else:
      alone = lambda row, *ins: predict(*(v[None] for v in ins), dropout=jax.random.key(row))[0]
      eps = jax.vmap(alone)(rows, *inputs)
    return _unfold(eps, self.patch_size)


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
      return x @ kernel[0, 0] + bias
    if self.doubled:
      return _conv_doubled(x, kernel) + bias
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
    y = x.astype(self.dtype) @ kernel
    if not self.bias:
      return y
    return y + self.param("bias", _torch_uniform(shape[0]), shape[1:]).astype(self.dtype)


class GroupNorm(nn.Module):
  """Group normalisation, with optional SiLU; statistics in float32, by per-channel sums first."""

  net: Any
  silu: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels, groups = x.shape[-1], self.net.norm_num_groups
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
  """x + conv(drop(act(norm(conv(act(norm(x))) + W act(temb))))), 1x1 shortcut where C changes."""

  net: Any
  features: int

  @nn.compact
  def __call__(self, x: Array, temb: Array | None = None) -> Array:
    dtype = self.net.dtype
    h = GroupNorm(self.net, name="norm1")(x)
    h = Conv(self.features, dtype=dtype, name="conv1")(h)
    if temb is not None:
      shift = Linear(self.features, dtype=dtype, name="time_emb_proj")(jax.nn.silu(temb))
      h = h + shift[:, None, None, :]
    h = GroupNorm(self.net, name="norm2")(h)
    h = nn.Dropout(self.net.dropout, deterministic=not self.has_rng("dropout"))(h)
    h = Conv(self.features, dtype=dtype, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = Conv(self.features, size=1, dtype=dtype, name="conv_shortcut")(x)
    return x + h


class Attention(nn.Module):
  """Self-attention over pixels with a residual; softmax in float32."""

  net: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, h, w, channels = x.shape
    dim = self.net.attention_head_dim or channels
    y = GroupNorm(self.net, silu=False, name="group_norm")(x).reshape(b, h * w, channels)
    dense = lambda name: Linear(channels, dtype=self.net.dtype, name=name)
    q, k, v = (dense(n)(y).reshape(b, h * w, -1, dim) for n in ("to_q", "to_k", "to_v"))
    y = attention.attend(q, k, v)
    return x + dense("to_out_0")(y.reshape(b, h * w, channels)).reshape(x.shape)


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


class DownBlock(nn.Module):
  """`layers_per_block` residual blocks (with attention in AttnDownBlock2D), then halving."""

  net: Net
  level: int

  @nn.compact
  def __call__(self, x: Array, temb: Array) -> tuple[Array, list[Array]]:
    net, skips = self.net, []
    for i in range(net.layers_per_block):
      x = ResnetBlock(net, net.block_out_channels[self.level], name=f"resnets_{i}")(x, temb)
      if net.down_block_types[self.level] == "AttnDownBlock2D":
        x = Attention(net, name=f"attentions_{i}")(x)
      skips.append(x)
    if self.level < len(net.block_out_channels) - 1:
      x = Downsample(net, name="downsamplers_0")(x)
      skips.append(x)
    return x, skips


class MidBlock(nn.Module):
  """Residual block, attention, residual block."""

  net: Net

  @nn.compact
  def __call__(self, x: Array, temb: Array) -> Array:
    x = ResnetBlock(self.net, x.shape[-1], name="resnets_0")(x, temb)
    x = Attention(self.net, name="attentions_0")(x)
    return ResnetBlock(self.net, x.shape[-1], name="resnets_1")(x, temb)


class UpBlock(nn.Module):
  """`layers_per_block + 1` residual blocks on [x, skip], attention in AttnUpBlock2D, doubling."""

  net: Net
  level: int  # 0 is the coarsest

  @nn.compact
  def __call__(self, x: Array, skips: list[Array], temb: Array) -> Array:
    net = self.net
    features = net.block_out_channels[::-1][self.level]
    for i in range(net.layers_per_block + 1):
      x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = ResnetBlock(net, features, name=f"resnets_{i}")(x, temb)
      if net.up_block_types[self.level] == "AttnUpBlock2D":
        x = Attention(net, name=f"attentions_{i}")(x)
    if self.level < len(net.block_out_channels) - 1:
      x = Upsample(net, name="upsamplers_0")(x)
    return x


class TimeEmbedding(nn.Module):
  """linear_2(silu(linear_1(sinusoids of t))): [B] -> [B, 4 * first width]."""

  net: Any

  @nn.compact
  def __call__(self, t: Array) -> Array:
    width = self.net.block_out_channels[0]
    h = _sinusoids(t, width, self.net.freq_shift, self.net.flip_sin_to_cos)
    h = Linear(4 * width, dtype=self.net.dtype, name="linear_1")(h)
    return Linear(4 * width, dtype=self.net.dtype, name="linear_2")(jax.nn.silu(h))


class ClassEmbedding(nn.Module):
  """linear_2(silu(linear_1(row c of a table))): [B] -> [B, 4 first width]; the last row is NULL."""

  net: Net
  values: int

  @nn.compact
  def __call__(self, c: Array) -> Array:
    width = self.net.block_out_channels[0]
    table = self.param("embedding", nn.initializers.normal(1.0), (self.values + 1, width))
    h = table[jnp.where(c == NULL, self.values, c)].astype(self.net.dtype)
    h = Linear(4 * width, dtype=self.net.dtype, name="linear_1")(h)
    return Linear(4 * width, dtype=self.net.dtype, name="linear_2")(jax.nn.silu(h))


class UNet(nn.Module):
  """[B, h, w, p p C] folded images, [B] times, [B, n] conditions -> the noise, folded, float32."""

  net: Net

  @nn.compact
  def __call__(self, x: Array, t: Array, c: Array) -> Array:
    net = self.net
    levels = range(len(net.block_out_channels))
    embeddings = [TimeEmbedding(net, name="time_embedding")(t)]
    for i, values in enumerate(net.classes):
      embeddings.append(ClassEmbedding(net, values, name=f"class_embedding_{i}")(c[:, i]))
    temb = jnp.concatenate(embeddings, axis=-1)
    x = Conv(net.block_out_channels[0], dtype=net.dtype, name="conv_in")(x)
    skips = [x]
    for i in levels:
      x, new = DownBlock(net, i, name=f"down_blocks_{i}")(x, temb)
      skips += new
    x = MidBlock(net, name="mid_block")(x, temb)
    for i in levels:
      x = UpBlock(net, i, name=f"up_blocks_{i}")(x, skips, temb)
    x = GroupNorm(net, name="conv_norm_out")(x)
    features = net.out_channels * net.patch_size**2
    return Conv(features, dtype=net.dtype, name="conv_out")(x).astype(jnp.float32)


def _sinusoids(t: Array, width: int, freq_shift: int, flip_sin_to_cos: bool) -> Array:
  """[B] (int or float time) -> [B, width]: sin and cos of t 10000^(-k / (width/2 - freq_shift))."""
  half = width // 2
  freqs = np.exp(-np.log(10000.0) * np.arange(half) / (half - freq_shift)).astype(np.float32)
  angles = t.astype(jnp.float32)[:, None] * freqs
  waves = (
    [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
  )
  return jnp.concatenate(waves, axis=-1)


def _conv_doubled(x: Array, kernel: Array) -> Array:
  """conv(doubled x), 3x3, without the doubled image: 4/9 of the multiplications.

  An output pixel sees 2 x 2 distinct input pixels, so that each of its four phases (p, q) is a
  2x2 convolution whose taps are sums of the kernel's.
  """
  taps = lambda k, p: jnp.stack([k[0] + k[1], k[2]] if p else [k[0], k[1] + k[2]])
  phase = lambda p, q: jax.lax.conv_general_dilated(
    x,
    jnp.swapaxes(taps(jnp.swapaxes(taps(kernel, p), 0, 1), q), 0, 1),
    (1, 1),
    ((1 - p, p), (1 - q, q)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  rows = [jnp.stack([phase(p, 0), phase(p, 1)], axis=3) for p in (0, 1)]
  return einops.rearrange(jnp.stack(rows, axis=2), "b h p w q c -> b (h p) (w q) c")


def _fold(x: Array, p: int) -> Array:
  """[B, H, W, C] -> [B, H/p, W/p, p p C]."""
  return einops.rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)


def _unfold(x: Array, p: int) -> Array:
  return einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)


def _torch_uniform(fan_in: Any) -> Any:
  """PyTorch's default for convolutions and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
  bound = float(fan_in) ** -0.5
  return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
