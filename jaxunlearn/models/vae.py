"""The autoencoder of Stable Diffusion: the equal of diffusers' `AutoencoderKL`.

    mean, log var = encode(x)            [B, H, W, C] in [-1, 1] -> twice [B, H/f, W/f, z]
    z = scaling_factor (mean + std n),   n ~ N(0, I)             what the diffusion model sees
    x = decode(z / scaling_factor)

Parameters are named as in the PyTorch state dict, by the rule of models/unet.py, from which the
blocks are: its residual blocks without a time, its attention with one head.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import errors
from jaxunlearn.inputs import ranges
from jaxunlearn.models.unet import DTYPES
from jaxunlearn.models.unet_blocks import (
  Attention,
  Conv,
  Downsample,
  GroupNorm,
  MidBlock,
  ResnetBlock,
  Upsample,
)

LOG_VAR = (-30.0, 20.0)  # the range that it is cut to


class Moments(NamedTuple):
  """Of the latents of some pictures, not yet scaled."""

  mean: Float[Array, "B h w z"]
  log_var: Float[Array, "B h w z"]


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """The fields of diffusers' `config.json`, under its names. The default is Stable Diffusion's."""

  sample_size: ranges.Count = 512
  in_channels: ranges.Count = 3
  out_channels: ranges.Count = 3
  latent_channels: ranges.Count = 4
  block_out_channels: Sequence[ranges.Count] = (128, 256, 512, 512)
  layers_per_block: ranges.Count = 2
  norm_num_groups: ranges.Count = 32
  scaling_factor: ranges.Above0 = 0.18215
  dtype: str = "float32"

  # What the layers of unet_blocks.py read, the same in every AutoencoderKL.
  norm_eps = 1e-6
  attention_head_dim = None
  downsample_padding = 0
  dropout = 0.0

  def __post_init__(self) -> None:
    object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
    ranges.check(self)
    for width in self.block_out_channels:
      if width % self.norm_num_groups:
        raise ValueError(
          f"block_out_channels {width} does not divide into norm_num_groups "
          f"{self.norm_num_groups}; use a multiple"
        )
    if self.sample_size % self.factor:
      raise ValueError(f"sample_size is {self.sample_size}; use a multiple of {self.factor}")
    errors.check_choice("dtype", self.dtype, DTYPES)

  @property
  def factor(self) -> int:
    """How many pixels of a picture one of the latent stands for, in height and in width."""
    return 2 ** (len(self.block_out_channels) - 1)

  def attention(self, level: int, name: str) -> nn.Module:
    """Of one head, which the middle alone has."""
    del level
    return Attention(self, self.norm_num_groups, name=name)

  def init(self, key: Array) -> Any:
    """Random parameters, a nested dict of float32 arrays."""
    x = jnp.zeros((1, self.factor, self.factor, self.in_channels))
    return _Whole(self).init(key, x)["params"]

  def encode(self, params: Any, x: Float[Array, "B H W C"]) -> Moments:
    """The moments of the latents of x, float32."""
    both: Any = _Whole(self).apply({"params": params}, x, method="moments")
    mean, log_var = jnp.split(both, 2, axis=-1)
    return Moments(mean, jnp.clip(log_var, *LOG_VAR))

  def sample(self, moments: Moments, key: Array) -> Float[Array, "B h w z"]:
    """Latents as the diffusion model sees them, drawn from the posterior."""
    noise = jax.random.normal(key, moments.mean.shape)
    return self.scaled(moments.mean + jnp.exp(0.5 * moments.log_var) * noise)

  def scaled(self, z: Float[Array, "B h w z"]) -> Float[Array, "B h w z"]:
    """Latents, of about unit variance."""
    return self.scaling_factor * z

  def decode(self, params: Any, z: Float[Array, "B h w z"]) -> Float[Array, "B H W C"]:
    """The pictures of scaled latents, in [-1, 1] but for overshoot, float32."""
    return _Whole(self).apply({"params": params}, z / self.scaling_factor, method="decode")  # type: ignore[return-value]


class _Whole(nn.Module):
  """Encoder, decoder and the 1x1 convolutions between them."""

  net: Autoencoder

  def setup(self) -> None:
    conv = lambda features: Conv(features, size=1, dtype=self.net.dtype)
    self.encoder, self.decoder = Encoder(self.net), Decoder(self.net)
    self.quant_conv = conv(2 * self.net.latent_channels)
    self.post_quant_conv = conv(self.net.latent_channels)

  def __call__(self, x: Array) -> Array:
    return self.decode(jnp.split(self.moments(x), 2, axis=-1)[0])

  def moments(self, x: Array) -> Array:
    return self.quant_conv(self.encoder(x)).astype(jnp.float32)

  def decode(self, z: Array) -> Array:
    return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)


class Encoder(nn.Module):
  """[B, H, W, C] -> [B, H/f, W/f, 2 latent_channels]."""

  net: Autoencoder

  @nn.compact
  def __call__(self, x: Array) -> Array:
    net = self.net
    x = Conv(net.block_out_channels[0], dtype=net.dtype, name="conv_in")(x)
    for i, width in enumerate(net.block_out_channels):
      resample = Downsample if i < len(net.block_out_channels) - 1 else None
      x = Level(net, width, net.layers_per_block, resample, name=f"down_blocks_{i}")(x)
    x = MidBlock(net, name="mid_block")(x)
    x = GroupNorm(net, name="conv_norm_out")(x)
    return Conv(2 * net.latent_channels, dtype=net.dtype, name="conv_out")(x)


class Decoder(nn.Module):
  """[B, h, w, latent_channels] -> [B, H, W, C]."""

  net: Autoencoder

  @nn.compact
  def __call__(self, z: Array) -> Array:
    net = self.net
    x = Conv(net.block_out_channels[-1], dtype=net.dtype, name="conv_in")(z)
    x = MidBlock(net, name="mid_block")(x)
    for i, width in enumerate(net.block_out_channels[::-1]):
      resample = Upsample if i < len(net.block_out_channels) - 1 else None
      x = Level(net, width, net.layers_per_block + 1, resample, name=f"up_blocks_{i}")(x)
    x = GroupNorm(net, name="conv_norm_out")(x)
    return Conv(net.out_channels, dtype=net.dtype, name="conv_out")(x)


class Level(nn.Module):
  """Residual blocks of one width, then halving or doubling, where there is a next level."""

  net: Autoencoder
  features: int
  count: int
  resample: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i in range(self.count):
      x = ResnetBlock(self.net, self.features, name=f"resnets_{i}")(x)
    if self.resample is None:
      return x
    name = "downsamplers_0" if self.resample is Downsample else "upsamplers_0"
    return self.resample(self.net, name=name)(x)
