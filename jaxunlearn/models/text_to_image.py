"""A text-to-image model as a noise predictor of numbered conditions: UNet and text encoder.

A *prompt book* numbers the prompts that a model is asked for: the last row is the empty prompt, to
which the condition NULL leads. Of several conditions (an object, a style) each combination has its
row. The parameters are

    unet            text_unet.Net's
    text_encoder    clip.Text's, with ids [P + 1, L]: what each row of the book is in tokens
    states          [P + 1, L, D] in the place of both: the book encoded once, a frozen encoder's
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from jaxunlearn.diffusion import NULL
from jaxunlearn.models import clip, text_unet


@dataclasses.dataclass(frozen=True)
class Net:
  """Conditions are int32 [B] or [B, n], of `classes` values each; or the states of texts."""

  unet: text_unet.Net
  text: clip.Text
  classes: tuple[int, ...]

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
    return self.text.states(params["text_encoder"], params["ids"][rows])

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
