"""What noise predictors have in common: the images they take, and conditions as rows of numbers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxunlearn.diffusion import NULL


class Predictor:
  """A base of the frozen `Net`s; the fields are theirs."""

  sample_size: int | Sequence[int]  # the side of a square in pixels, or height and width
  in_channels: int
  classes: Sequence[int]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    size = self.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (height, width, self.in_channels)

  def conditions(self, x: Array, c: Array | None) -> Int[Array, "B n"]:
    """The conditions of the rows of x: of c [B], or [B, n] for n > 1 of them; None is none in all.

    Raises:
      ValueError: conditions for an unconditional network, or of another number.
    """
    n = len(self.classes)
    if c is None:
      return jnp.full((len(x), n), NULL)
    if not n:
      raise ValueError("this network is unconditional and was given a condition; drop the labels")
    if c.shape != ((len(x),) if n == 1 else (len(x), n)):
      raise ValueError(f"conditions are {c.shape}; give {n} for each of {len(x)} images")
    return c.reshape(len(x), n)
