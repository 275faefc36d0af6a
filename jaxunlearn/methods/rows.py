"""What methods read: the rows of a stream, all of a stream, and the text side of a model."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

Array = jax.Array


class Rows(NamedTuple):
  """A batch of one stream: images in [-1, 1], their conditions if any, their record numbers."""

  image: Array | np.ndarray  # [B, H, W, C] float32
  c: Array | np.ndarray | None = None  # int32 [B] (or [B, n]), or None for an unconditional model
  index: Array | np.ndarray | None = None  # type: ignore[assignment]  # [B] int32, place in the set
  to: Array | np.ndarray | None = None  # the condition that a method maps c to, where it maps it

  def chunks(self, size: int = 256) -> Iterator["Rows"]:
    """All rows in order, `size` at a time."""
    for start in range(0, len(self.image), size):
      rows = slice(start, start + size)
      yield self.at(rows)

  def told(self) -> tuple[Any, Any]:
    """The condition of each row, and what it is mapped to."""
    return self.c, self.to

  def at(self, rows: Any) -> "Rows":
    return Rows(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]

  def pick(self, n: int, seed: int) -> "Rows":
    """n rows at random, or all where there are fewer."""
    count = len(self.image)
    return self.at(np.random.default_rng(seed).permutation(count)[:n])


@runtime_checkable
class Whole(Protocol):
  """All records of a stream, read in chunks or picked: a `streams.Stream`, or `Rows` in memory."""

  def chunks(self, size: int = 256) -> Iterator[Rows]: ...

  def pick(self, n: int, seed: int) -> Rows: ...

  def told(self) -> tuple[Any, Any]: ...


@runtime_checkable
class Text(Protocol):
  """The text side of a text-to-image model: `prompts.Encoder`."""

  def last(self, given: np.ndarray | Sequence[str]) -> np.ndarray:
    """The state [P, D] of the last token of each prompt, float32: of its number, or spelt out."""
    ...
