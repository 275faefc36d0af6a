"""A text-to-image model as a noise predictor of numbered conditions: UNet and text encoder.

A *prompt book* numbers the prompts that a model is asked for: the last row is the empty prompt, to
which the condition NULL leads. Of several conditions (an object, a style) each combination has its
row. The parameters are

    unet            text_unet.Net's
    text_encoder    clip.Text's, which encodes `book`: the tokens of each row
    states          [P + 1, L, D] in its place: the book encoded once
    prefix          [k, V], where there are some: of k tokens before each prompt but the empty one,
                    the weights of all tokens; the heaviest is taken, and the gradient is that of
                    the weighted sum (straight through)
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL
from jaxunlearn.inputs import ranges
from jaxunlearn.models import clip, text_unet


@dataclasses.dataclass(frozen=True, eq=False)
class Book:
  """The token ids of each prompt, the empty one last; equal ones are equal, as jit needs."""

  ids: Int[np.ndarray, "P L"]

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Book) and np.array_equal(self.ids, other.ids)

  def __hash__(self) -> int:
    return hash((self.ids.shape, self.ids.tobytes()))


@dataclasses.dataclass(frozen=True)
class Net:
  """Conditions are int32 [B] or [B, n], of `classes` values each; or the states of texts."""

  unet: Any = dataclasses.field(default_factory=text_unet.Net)  # a text_unet.Net, or its fields
  text: Any = dataclasses.field(default_factory=clip.Text)  # a clip.Text, or its fields
  classes: Sequence[ranges.Count] = ()
  book: Book | None = dataclasses.field(default=None, metadata={"of": "data"})  # no config's

  def __post_init__(self) -> None:
    for name, kind in (("unet", text_unet.Net), ("text", clip.Text)):
      if not isinstance(given := getattr(self, name), kind):
        object.__setattr__(self, name, errors.build(kind, f"model.{name}", dict(given)))
    object.__setattr__(self, "classes", tuple(self.classes))
    ranges.check(self)

  @property
  def dtype(self) -> str:
    """Of the UNet's computations."""
    return self.unet.dtype

  @property
  def dropout(self) -> float:
    """None: Stable Diffusion trains without."""
    return 0.0

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Of a latent."""
    return self.unet.image_shape

  @property
  def prompts(self) -> int:
    """How many there are, without the empty one."""
    return math.prod(self.classes)

  def init(self, key: Array) -> Any:
    """Random parameters of both networks, without a book."""
    k_unet, k_text = jax.random.split(key)
    return {"unet": self.unet.init(k_unet), "text_encoder": self.text.init(k_text)}

  def apply(
    self,
    params: Any,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Array | np.ndarray | None = None,
  ) -> Float[Array, "B H W C"]:
    """What the network predicts of the latent x at the times t; None is the empty prompt."""
    c = jnp.full((len(x), len(self.classes)), NULL) if c is None else jnp.asarray(c)
    states = c if jnp.issubdtype(c.dtype, jnp.floating) else self.states(params, c)
    return self.unet.apply(params["unet"], x, t, states)

  def states(self, params: Any, c: Int[Array, "B ..."]) -> Float[Array, "B L D"]:
    """The states of the prompts of those conditions."""
    rows = self.rows(c)
    if "states" in params:
      return params["states"][rows]
    if self.book is None:
      raise ValueError("this network has no prompts; give it a book, or the states of texts")
    ids = jnp.asarray(self.book.ids)[rows]
    if "prefix" in params:
      return self._prefixed(params, ids, (rows == self.prompts)[:, None])
    return self.text.states(params["text_encoder"], ids)

  def _prefixed(
    self, params: Any, ids: Int[Array, "B L"], empty: Bool[Array, "B 1"]
  ) -> Float[Array, "B L D"]:
    """The states of prompts with the prefix before them; what does not fit is cut at the end."""
    weights, end = params["prefix"], self.text.end
    k, length = len(weights), ids.shape[1]
    hard = jax.nn.one_hot(jnp.argmax(weights, axis=1), weights.shape[1])
    through = hard + weights - jax.lax.stop_gradient(weights)
    table = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    moved = jnp.concatenate([ids[:, : 1 + k], ids[:, 1 : length - k]], axis=1)
    whole = (moved[:, 1 + k :] == end).any(axis=1)
    moved = moved.at[:, -1].set(jnp.where(whole, moved[:, -1], end))
    ids = jnp.where(empty, ids, moved)
    after = jnp.where(empty[..., None], table[ids[:, 1 : 1 + k]], (through @ table)[None])
    return self.text.states(params["text_encoder"], ids, after)

  def rows(self, c: Int[Array, "B ..."]) -> Int[Array, " B"]:
    """Their rows of the book; the last is the empty prompt, which any NULL leads to."""
    columns = jnp.asarray(c).reshape(len(c), len(self.classes))
    row = jnp.zeros(len(columns), jnp.int32)
    for i, count in enumerate(self.classes):
      row = row * count + columns[:, i]
    return jnp.where((columns == NULL).any(axis=1), self.prompts, row)


def combinations(classes: tuple[int, ...]) -> Int[np.ndarray, "P n"]:
  """The conditions of each row of the book but the last, in order."""
  return np.stack(np.unravel_index(np.arange(math.prod(classes)), classes), -1).astype(np.int32)
