"""The UNet of DDPM in Flax: the equal of diffusers' `UNet2DModel` (Ho et al., 2020, appendix B).

Parameters are named as in its PyTorch state dict, a list index joined by an underscore
(`down_blocks.0.resnets.1.conv1.weight` is `down_blocks_0/resnets_1/conv1/kernel`), so that
`weights/pretrained.py` maps both ways by rule. Layout is NHWC; diffusers' is NCHW.

With `classes` it is the class-conditional UNet of the unlearning papers (not in diffusers): each
condition has a table of embeddings whose last row is the learned null, an MLP of its own like
time's, and the results stand beside time's in what each residual block reads. diffusers' own
class-conditional UNet, `num_class_embeds`, adds a row of one table to time's embedding.

With `dropout` each residual block drops a share of its activations before its last convolution,
while training only: where `apply` gets `rows`, one seed a row, from which the row's masks follow
wherever in the batch it stands.

Parameters, group-norm statistics, attention weights and the output are float32; `dtype` is the
type of the other activations and of the weights while they are used (bfloat16 on accelerators).
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real, UInt32

from jaxunlearn import errors
from jaxunlearn.inputs import ranges
from jaxunlearn.models import unet_blocks
from jaxunlearn.models.predictor import Predictor
from jaxunlearn.models.unet_blocks import Attention, ClassEmbedding, ClassTable, TimeEmbedding

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
CHOICES = {
  "downsample_type": ("conv", "resnet"),
  "upsample_type": ("conv", "resnet"),
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "dtype": ("float32", "bfloat16"),
}
DTYPES = CHOICES["dtype"]
_SEQUENCES = {"block_out_channels": int, "down_block_types": str, "up_block_types": str}
_SEQUENCES |= {"classes": int}


@dataclasses.dataclass(frozen=True)
class Net(Predictor):
  """The fields of diffusers' `config.json`, under its names; sequences are kept as tuples."""

  sample_size: ranges.Count | Sequence[ranges.Count] = 28  # pixels a side, or (height, width)
  in_channels: ranges.Count = 1
  out_channels: ranges.Count = 1
  block_out_channels: Sequence[ranges.Count] = (64, 128, 256)
  down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
  up_block_types: Sequence[str] = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
  layers_per_block: ranges.Count = 2
  attention_head_dim: ranges.Count | None = 8  # None: one head as wide as the block
  norm_num_groups: ranges.Count = 32
  attn_norm_num_groups: ranges.Count | None = None  # of the middle's attention; None: as the rest
  norm_eps: ranges.Above0 = 1e-5
  resnet_time_scale_shift: str = "default"  # or scale_shift, of the second norm
  downsample_padding: Annotated[int, ranges.Range(0, 1, whole=True)] = 1
  downsample_type: str = "conv"  # of blocks with attention; or resnet
  upsample_type: str = "conv"
  patch_size: ranges.Count = 1  # p > 1 folds p x p pixels into channels first (not in diffusers)
  flip_sin_to_cos: bool = True
  freq_shift: Annotated[int, ranges.Range(0, 1, whole=True)] = 0
  time_embedding_dim: ranges.Count | None = None  # None: 4 times the first width
  dropout: ranges.Under1 = 0.0  # share of a block's activations that a training step drops
  classes: Sequence[ranges.Count] = ()  # how many values each condition has; (): unconditional
  num_class_embeds: ranges.Count | None = None  # rows of diffusers' own table of classes
  dtype: str = "float32"

  def __post_init__(self) -> None:
    for field in _SEQUENCES:
      object.__setattr__(self, field, _tuple(field, getattr(self, field)))
    if not isinstance(self.sample_size, int):
      object.__setattr__(self, "sample_size", _tuple("sample_size", self.sample_size))
    ranges.check(self)
    for field, choices in CHOICES.items():
      errors.check_choice(field, getattr(self, field), choices)
    self._check_blocks()
    self._check_widths()
    self._check_size()
    self._check_classes()

  @property
  def time_width(self) -> int:
    """Of the embedding of time."""
    return self.time_embedding_dim or 4 * self.block_out_channels[0]

  def attention(self, level: int, name: str) -> nn.Module:
    """Among pixels; the middle's has a norm under scale_shift only where a field says so."""
    groups: int | None = self.norm_num_groups
    if level == unet_blocks.MIDDLE:
      groups = groups if self.resnet_time_scale_shift == "default" else None
      groups = self.attn_norm_num_groups or groups
    return Attention(self, groups, name=name)

  def _check_blocks(self) -> None:
    levels = len(self.block_out_channels)
    for field, choices in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
      types = getattr(self, field)
      if len(types) != levels:
        raise ValueError(
          f"{field} has {len(types)} blocks and block_out_channels {levels}; "
          "give one block type per level"
        )
      for block in types:
        errors.check_choice(f"block of {field}", block, choices)

  def _check_widths(self) -> None:
    widths, middle = self.block_out_channels, self.block_out_channels[-1]
    for width in widths:
      if width % self.norm_num_groups:
        raise ValueError(
          f"block_out_channels {width} does not divide into norm_num_groups "
          f"{self.norm_num_groups}; use a multiple"
        )
    if middle % (self.attn_norm_num_groups or 1):
      raise ValueError(
        f"block_out_channels {middle} does not divide into attn_norm_num_groups "
        f"{self.attn_norm_num_groups}; use a divisor"
      )
    down, up = self.down_block_types, self.up_block_types[::-1]
    attend = [w for w, *kinds in zip(widths, down, up, strict=True) if "Attn" in "".join(kinds)]
    if min(narrow := [*attend, middle]) < (self.attention_head_dim or 0):
      raise ValueError(
        f"attention_head_dim {self.attention_head_dim} is more than block_out_channels "
        f"{min(narrow)} of a block with attention; use at most that"
      )

  def _check_size(self) -> None:
    halvings = len(self.block_out_channels) - 1
    unit = self.patch_size * 2**halvings
    if not isinstance(self.sample_size, int) and len(self.sample_size) != 2:
      raise ValueError(f"sample_size is {self.sample_size}; give a side, or height and width")
    height, width, channels = self.image_shape
    if height % unit or width % unit:
      raise ValueError(
        f"sample_size {self.sample_size} with patch_size {self.patch_size} cannot be halved "
        f"{halvings} times; use a multiple of {unit}"
      )
    if self.out_channels != channels:
      raise ValueError(
        f"out_channels is {self.out_channels} and in_channels {channels}: a noise predictor gives "
        "back what it takes, and a learned variance is not implemented; take weights without it"
      )

  def _check_classes(self) -> None:
    rows = self.num_class_embeds
    if rows is not None and self.classes not in ((rows,), (rows - 1,)):
      raise ValueError(
        f"classes is {self.classes} and num_class_embeds {rows}; use ({rows},), or ({rows - 1},) "
        "where the last row stands for no class"
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


class UNet(nn.Module):
  """[B, h, w, p p C] folded images, [B] times, [B, n] conditions -> the noise, folded, float32."""

  net: Net

  @nn.compact
  def __call__(self, x: Array, t: Array, c: Array) -> Array:
    net = self.net
    temb = TimeEmbedding(net, name="time_embedding")(t)
    if net.num_class_embeds:
      temb += ClassTable(net, name="class_embedding")(c[:, 0])
    else:
      told = [
        ClassEmbedding(net, values, name=f"class_embedding_{i}")(c[:, i])
        for i, values in enumerate(net.classes)
      ]
      temb = jnp.concatenate([temb, *told], axis=-1)
    features = net.out_channels * net.patch_size**2
    return unet_blocks.unet(net, x, temb, features=features, remat=False)


def _tuple(field: str, values: Any) -> tuple[Any, ...]:
  """The values of a field of several; raises ValueError where it is something else."""
  kind = _SEQUENCES.get(field, int)
  if not isinstance(values, list | tuple) or not all(isinstance(v, kind) for v in values):
    raise ValueError(f"{field} is {values!r}; give a list of {kind.__name__}s")
  return tuple(values)


def _fold(x: Array, p: int) -> Array:
  """[B, H, W, C] -> [B, H/p, W/p, p p C]."""
  return einops.rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)


def _unfold(x: Array, p: int) -> Array:
  return einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
