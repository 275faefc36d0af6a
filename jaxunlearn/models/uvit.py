"""U-ViT in Flax: a vision transformer with long skips as noise predictor (Bao et al., 2023).

Conditions, the time and p x p patches are all tokens, [conditions, time, patches], and one learned
table has a position for each. A block is pre-norm:

    h = x + proj(attention(qkv(LN(x)))),    block(x) = h + fc2(gelu(fc1(LN(h))))

depth/2 blocks, one in the middle, and depth/2 more, which begin with a long skip: the i-th last
reads x = W [x, what the i-th block gave] + b. Deep prompts (Jia et al., 2022) are more tokens that
each block reads, has of its own and hands to no other.

Parameters are named as in the published PyTorch state dict (`in_blocks.0.attn.qkv.weight` is
`in_blocks_0/attn/qkv/kernel`), save the tables of conditions: `weights/uvit_weights.py`
maps both ways. Every product is a matrix product, which `jax.vmap` over stacked parameters makes a
batched one.

Parameters, layer-norm statistics, attention weights and the output are float32; `dtype` is the
type of the other activations and of the weights while they are used (bfloat16 on accelerators).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL
from jaxunlearn.inputs import ranges
from jaxunlearn.models import attention, product, unet
from jaxunlearn.models.predictor import Predictor

TIMES = {"discrete": 1.0, "vpsde": 0.999}  # the network reads that times n = t + 1 of 1..1000
_normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Net(Predictor):
  """A U-ViT by its sizes. The published CIFAR-10 S/2 is the default, less `time="vpsde"`.

  The published ImageNet 64 models were trained without guidance and have no null: theirs is
  classes=(999,), whose last row, the null here, is the class 999.
  """

  sample_size: ranges.Count = 32
  in_channels: ranges.Count = 3
  patch_size: ranges.Count = 2
  width: ranges.Count = 512
  depth: ranges.OneIn = 12  # blocks besides the middle one
  heads: ranges.Count = 8
  classes: Sequence[ranges.Count] = ()  # how many values each condition has; (): unconditional
  head_conv: bool = True  # a 3x3 convolution at the end; the H models have none
  time: str = "discrete"  # n of the H and text models; vpsde, 999 (n / 1000), of the others
  dtype: str = "float32"

  def __post_init__(self) -> None:
    object.__setattr__(self, "classes", tuple(self.classes))
    ranges.check(self)
    if self.depth % 2:
      raise ValueError(f"depth is {self.depth}; use an even number of at least 2")
    if self.sample_size % self.patch_size:
      raise ValueError(
        f"sample_size {self.sample_size} does not divide into patches of patch_size "
        f"{self.patch_size}; use a multiple"
      )
    if self.width % math.lcm(2, self.heads):
      raise ValueError(
        f"width {self.width} does not divide into heads {self.heads} and into sines and cosines; "
        f"use a multiple of {math.lcm(2, self.heads)}"
      )
    errors.check_choice("time", self.time, TIMES)
    errors.check_choice("dtype", self.dtype, unet.DTYPES)

  @property
  def blocks(self) -> tuple[str, ...]:
    """The names of the blocks in the parameters, in order."""
    ends = [[f"{end}_blocks_{i}" for i in range(self.depth // 2)] for end in ("in", "out")]
    return (*ends[0], "mid_block", *ends[1])

  def init(self, key: Array) -> Any:
    """Random parameters, a nested dict of float32 arrays."""
    c = jnp.zeros((1, len(self.classes)), jnp.int32)
    return UViT(self).init(key, jnp.zeros((1, *self.image_shape)), jnp.zeros(1), c)["params"]

  def apply(
    self,
    params: Any,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Array | None = None,
    prompts: Float[Array, "*rows N P width"] | None = None,
  ) -> Float[Array, "B H W C"]:
    """The predicted noise, float32, of x at the whole or broken times t, under conditions c.

    Args:
      c: int32 [B], or [B, n] for n > 1 conditions; NULL (-1) is no condition, and None none in all.
      prompts: P more tokens for each of N = depth + 1 blocks, for all rows or [B, N, P, width].

    Raises:
      ValueError: conditions for an unconditional network, or of another number; prompts for
        another number of blocks, or of another width.
    """
    want = (self.depth + 1, self.width)
    if prompts is not None and (prompts.shape[-3], prompts.shape[-1]) != want:
      raise ValueError(f"prompts are {prompts.shape}; give [{want[0]} blocks, tokens, {want[1]}]")
    return UViT(self).apply({"params": params}, x, t, self.conditions(x, c), prompts)  # type: ignore

  def features(
    self, params: Any, x: Float[Array, "B H W C"], t: Real[Array, " B"], c: Array | None = None
  ) -> Float[Array, "B L width"]:
    """The tokens [conditions, time, patches] behind the middle block, float32."""
    middle = UViT(self, to_middle=True)
    return middle.apply({"params": params}, x, t, self.conditions(x, c))  # type: ignore


class UViT(nn.Module):
  """[B, H, W, C] images, [B] times, [B, n] conditions -> the noise (or middle tokens), float32."""

  net: Net
  to_middle: bool = False

  @nn.compact
  def __call__(self, x: Array, t: Array, c: Array, prompts: Array | None = None) -> Array:
    net, p = self.net, self.net.patch_size
    own = [None] * len(net.blocks) if prompts is None else jnp.moveaxis(prompts, -3, 0)
    waves = _sinusoids(TIMES[net.time] * (jnp.asarray(t, jnp.float32) + 1), net.width)
    extra = [*(_condition(net, i, c[:, i]) for i in range(len(net.classes))), waves]
    patches = PatchEmbed(net, name="patch_embed")(x)
    x = jnp.concatenate([*(v[:, None].astype(net.dtype) for v in extra), patches], axis=1)
    x = x + self.param("pos_embed", _normal, (1, *x.shape[1:])).astype(net.dtype)
    skips: list[Array] = []
    for i, name in enumerate(net.blocks):
      x = Block(net, name=name)(x, own[i], skips.pop() if name.startswith("out") else None)
      if name.startswith("in"):
        skips.append(x)
      if name == "mid_block" and self.to_middle:
        return x.astype(jnp.float32)
    x = _norm(net, "norm")(x[:, len(extra) :])
    x = _linear(net, p * p * net.in_channels, "decoder_pred")(x)
    side = net.sample_size // p
    x = einops.rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=side, p=p, q=p)
    if net.head_conv:
      x = Conv(net.in_channels, 3, net.dtype, name="final_layer")(_windows(x))
    return x.astype(jnp.float32)


class Block(nn.Module):
  """Long skip where there is one, attention, MLP: [B, L, D] -> [B, L, D]."""

  net: Net

  @nn.compact
  def __call__(self, x: Array, prompts: Array | None = None, skip: Array | None = None) -> Array:
    net = self.net
    if skip is not None:
      x = _linear(net, net.width, "skip_linear")(jnp.concatenate([x, skip], axis=-1))
    norm1 = _norm(net, "norm1")
    own = None if prompts is None else norm1(prompts)
    x = x + Attention(net, name="attn")(norm1(x), own)
    return x + MLP(net, name="mlp")(_norm(net, "norm2")(x))


class Attention(nn.Module):
  """Self-attention of tokens, softmax in float32; prompts [P, D] or [B, P, D] are attended to.

  What the block would make of the prompts is dropped after it, hence not computed: they have keys
  and values alone, computed once where all rows share them.
  """

  net: Net

  @nn.compact
  def __call__(self, x: Array, prompts: Array | None = None) -> Array:
    net = self.net
    qkv = _linear(net, 3 * net.width, "qkv", use_bias=False)
    split = lambda y: einops.rearrange(qkv(y), "... l (s h d) -> s ... l h d", s=3, h=net.heads)
    q, k, v = split(x)
    if prompts is not None:
      per_row = lambda y: jnp.broadcast_to(y, (len(x), *y.shape[-3:]))
      _, *own = split(prompts)
      k, v = (jnp.concatenate([y, per_row(o)], axis=1) for y, o in zip((k, v), own, strict=True))
    y = attention.attend(q, k, v)
    return _linear(net, net.width, "proj")(y.reshape(x.shape))


class MLP(nn.Module):
  """fc2(gelu(fc1(x))), four times as wide inside, with the exact gelu."""

  net: Net

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = jax.nn.gelu(_linear(self.net, 4 * self.net.width, "fc1")(x), approximate=False)
    return _linear(self.net, self.net.width, "fc2")(h)


class PatchEmbed(nn.Module):
  """A token for each patch, row by row: [B, H, W, C] -> [B, L, D]."""

  net: Net

  @nn.compact
  def __call__(self, x: Array) -> Array:
    p = self.net.patch_size
    windows = einops.rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
    return Conv(self.net.width, p, self.net.dtype, name="proj")(windows)


class Conv(nn.Module):
  """A convolution with bias as one product, of windows [..., size size C] gathered already."""

  features: int
  size: int
  dtype: Any

  @nn.compact
  def __call__(self, windows: Array) -> Array:
    fan_in = windows.shape[-1]
    bound = fan_in**-0.5  # PyTorch's default
    uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    shape = (self.size, self.size, fan_in // self.size**2, self.features)
    kernel = self.param("kernel", uniform, shape).astype(self.dtype)
    bias = self.param("bias", uniform, shape[3:]).astype(self.dtype)
    return windows.astype(self.dtype) @ kernel.reshape(fan_in, -1) + bias


def _condition(net: Net, i: int, c: Array) -> Array:
  """The token of the i-th condition, [B] -> [B, D]; the table's last row is NULL."""
  values = net.classes[i]
  name, normal = f"class_embedding_{i}", nn.initializers.normal(1.0)
  table = nn.Embed(values + 1, net.width, embedding_init=normal, name=name)
  return table(jnp.where(c == NULL, values, c))


def _linear(net: Net, features: int, name: str, use_bias: bool = True) -> nn.Dense:
  return nn.Dense(
    features,
    use_bias,
    dtype=net.dtype,
    kernel_init=_normal,
    dot_general=product.dot_general,
    name=name,
  )


def _norm(net: Net, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-5, dtype=net.dtype, use_fast_variance=False, name=name)


def _sinusoids(t: Array, width: int) -> Array:
  """[B] -> [B, width]: the cosines, then the sines, of t 10000^(-k / half)."""
  half = width // 2
  angles = t[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / half).astype(np.float32)
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _windows(x: Array) -> Array:
  """The 3x3 surroundings of each pixel, zeros beyond the edge: [B, H, W, C] -> [B, H, W, 9 C]."""
  h, w = x.shape[1:3]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-1)
