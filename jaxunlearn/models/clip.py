"""CLIP's two towers (Radford et al., 2021): the equals of transformers' text and vision models.

    layer(x) = h + mlp(LN(h)),   h = x + attention(LN(x));   causal over the tokens of a text

Text: Stable Diffusion reads the states of all tokens after the last norm. Vision: the state of the
class token after the last norm. With a projection either is a vector of the shared space: a text's
is its state at the end token.

Parameters are named as in the PyTorch state dicts, without the prefixes `text_model.` and
`vision_model.`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxunlearn import errors
from jaxunlearn.inputs import ranges
from jaxunlearn.models import attention
from jaxunlearn.models.unet import DTYPES
from jaxunlearn.models.unet_blocks import Conv, Linear

ACTIVATIONS = {
  "quick_gelu": lambda h: h * jax.nn.sigmoid(1.702 * h),
  "gelu": lambda h: jax.nn.gelu(h, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Tower:
  """What the two have in common, under transformers' names."""

  hidden_size: ranges.Count = 768
  intermediate_size: ranges.Count = 3072
  num_hidden_layers: ranges.Count = 12
  num_attention_heads: ranges.Count = 12
  hidden_act: str = "quick_gelu"
  layer_norm_eps: ranges.Above0 = 1e-5
  projection_dim: ranges.From0 = 0  # of the shared space; 0: the tower alone
  dtype: str = "float32"

  def __post_init__(self) -> None:
    ranges.check(self)
    errors.check_choice("hidden_act", self.hidden_act, ACTIVATIONS)
    errors.check_choice("dtype", self.dtype, DTYPES)
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(
        f"hidden_size {self.hidden_size} does not divide into num_attention_heads "
        f"{self.num_attention_heads}; use a multiple"
      )


@dataclasses.dataclass(frozen=True)
class Text(Tower):
  """The text tower; the default is that of Stable Diffusion 1."""

  vocab_size: ranges.Count = 49408
  max_position_embeddings: ranges.Count = 77
  end: ranges.From0 = 49407  # the token whose state stands for the text

  def init(self, key: Array) -> Any:
    """Random parameters, a nested dict of float32 arrays."""
    return TextTower(self).init(key, jnp.zeros((1, self.max_position_embeddings), jnp.int32))[
      "params"
    ]

  def states(
    self, params: Any, ids: Int[Array, "B L"], after: Float[Array, "B k D"] | None = None
  ) -> Float[Array, "B L D"]:
    """The states of the tokens behind the last norm, float32.

    `after` are embeddings in the place of those of the k tokens after the first.
    """
    out: Any = TextTower(self).apply({"params": params}, ids, after)
    return out[0]

  def embed(self, params: Any, ids: Int[Array, "B L"]) -> Float[Array, "B P"]:
    """The vectors of texts in the shared space, not normalised; needs a projection."""
    out: Any = TextTower(self).apply({"params": params}, ids)
    return out[1]


@dataclasses.dataclass(frozen=True)
class Vision(Tower):
  """The vision tower; the default is that of ViT-L/14."""

  hidden_size: ranges.Count = 1024
  intermediate_size: ranges.Count = 4096
  num_hidden_layers: ranges.Count = 24
  num_attention_heads: ranges.Count = 16
  image_size: ranges.Count = 224
  patch_size: ranges.Count = 14

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.image_size % self.patch_size:
      raise ValueError(
        f"image_size {self.image_size} does not divide into patches of patch_size "
        f"{self.patch_size}; use a multiple"
      )

  def init(self, key: Array) -> Any:
    """Random parameters, a nested dict of float32 arrays."""
    x = jnp.zeros((1, self.image_size, self.image_size, 3))
    return VisionTower(self).init(key, x)["params"]

  def embed(self, params: Any, images: Float[Array, "B H W 3"]) -> Float[Array, "B P"]:
    """The vectors of normalised images: in the shared space, or the tower's own without one."""
    return VisionTower(self).apply({"params": params}, images)  # type: ignore[return-value]


class TextTower(nn.Module):
  """[B, L] ids -> states [B, L, D], and the projected state of the first end token [B, P]."""

  net: Text

  @nn.compact
  def __call__(self, ids: Array, after: Array | None = None) -> tuple[Array, Array | None]:
    x = TokenEmbeddings(self.net, name="embeddings")(ids, after)
    x = Encoder(self.net, causal=True, name="encoder")(x)
    x = _norm(self.net, "final_layer_norm")(x).astype(jnp.float32)
    if not self.net.projection_dim:
      return x, None
    pooled = x[jnp.arange(len(x)), jnp.argmax(ids == self.net.end, axis=1)]
    return x, _projection(self.net, "text_projection")(pooled)


class VisionTower(nn.Module):
  """[B, H, W, 3] images -> [B, P], the projected state of the class token."""

  net: Vision

  @nn.compact
  def __call__(self, images: Array) -> Array:
    x = PatchEmbeddings(self.net, name="embeddings")(images)
    x = _norm(self.net, "pre_layrnorm")(x)  # so spelt in every file
    x = Encoder(self.net, causal=False, name="encoder")(x)
    pooled = _norm(self.net, "post_layernorm")(x[:, 0]).astype(jnp.float32)
    if not self.net.projection_dim:
      return pooled
    return _projection(self.net, "visual_projection")(pooled)


class TokenEmbeddings(nn.Module):
  """The embedding of each token, and that of its place."""

  net: Text

  @nn.compact
  def __call__(self, ids: Array, after: Array | None = None) -> Array:
    net = self.net
    table = lambda rows, name: nn.Embed(rows, net.hidden_size, dtype=net.dtype, name=name)
    tokens = table(net.vocab_size, "token_embedding")(ids)
    if after is not None:
      tokens = tokens.at[:, 1 : 1 + after.shape[1]].set(after.astype(tokens.dtype))
    places = jnp.arange(ids.shape[1])
    return tokens + table(net.max_position_embeddings, "position_embedding")(places)


class PatchEmbeddings(nn.Module):
  """A class token and the patches of an image, each with its place's embedding."""

  net: Vision

  @nn.compact
  def __call__(self, images: Array) -> Array:
    net, p = self.net, self.net.patch_size
    patches = Conv(
      net.hidden_size, p, p, ((0, 0), (0, 0)), bias=False, dtype=net.dtype, name="patch_embedding"
    )(images)
    first = self.param("class_embedding", nn.initializers.normal(0.02), (net.hidden_size,))
    first = jnp.broadcast_to(first.astype(net.dtype), (len(images), 1, net.hidden_size))
    x = jnp.concatenate([first, patches.reshape(len(images), -1, net.hidden_size)], axis=1)
    places = nn.Embed(x.shape[1], net.hidden_size, dtype=net.dtype, name="position_embedding")
    return x + places(jnp.arange(x.shape[1]))


class Encoder(nn.Module):
  """The layers in a row."""

  net: Tower
  causal: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for i in range(self.net.num_hidden_layers):
      x = Layer(self.net, self.causal, name=f"layers_{i}")(x)
    return x


class Layer(nn.Module):
  """Attention and an MLP, each behind a norm and beside a residual."""

  net: Tower
  causal: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = _norm(self.net, "layer_norm1")(x)
    x = x + SelfAttention(self.net, self.causal, name="self_attn")(y)
    return x + Mlp(self.net, name="mlp")(_norm(self.net, "layer_norm2")(x))


class SelfAttention(nn.Module):
  """[B, L, D] -> [B, L, D]."""

  net: Tower
  causal: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = lambda name: Linear(x.shape[-1], dtype=self.net.dtype, name=name)
    split = lambda name: dense(name)(x).reshape(*x.shape[:2], self.net.num_attention_heads, -1)
    q, k, v = (split(f"{one}_proj") for one in "qkv")
    y = attention.attend(q, k, v, causal=self.causal)
    return dense("out_proj")(y.reshape(x.shape))


class Mlp(nn.Module):
  """fc2(act(fc1(x)))."""

  net: Tower

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = Linear(self.net.intermediate_size, dtype=self.net.dtype, name="fc1")(x)
    h = ACTIVATIONS[self.net.hidden_act](h)
    return Linear(x.shape[-1], dtype=self.net.dtype, name="fc2")(h)


def _norm(net: Tower, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(net.layer_norm_eps, use_fast_variance=False, dtype=net.dtype, name=name)


def _projection(net: Tower, name: str) -> Linear:
  return Linear(net.projection_dim, bias=False, name=name)
