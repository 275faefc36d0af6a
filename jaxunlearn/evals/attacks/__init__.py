"""Attacks on membership: was this record trained on? One module an attack, each a score.

    score(eps_fn, process, x, c, rng) -> [N]     low: a member

Fields are the settings of the published code, times those of T = 1000; for another T they are
scaled to it. That code tells the result at each time and picks the best by the labels. Here the
score is the mean over the times, so nothing is picked.
To add an attack write one file here and name it in config.eval.membership_attacks.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion, EpsFn
from jaxunlearn.inputs import plugins, ranges

T = 1000  # of the times in the fields
SHORTEST = 100  # the least T that they are scaled to
Time = Annotated[int, ranges.Range(0, T - 1, whole=True)]
Times = Sequence[Time]


@runtime_checkable
class Attack(Protocol):
  """A frozen dataclass with the settings of its paper."""

  def score(
    self,
    eps_fn: EpsFn,
    process: Diffusion,
    x: Float[Array, "N H W C"],
    c: Array | None,
    rng: Shaped[Array, "..."],
  ) -> Float[Array, " N"]:
    """The score of each image in [-1, 1] under its condition; a low one speaks for a member.

    Raises:
      ValueError: T is under SHORTEST.
    """
    ...


CHOICES = plugins.Group(__name__, "membership attack", "Attack")
names = CHOICES.names


def make(name: str, **fields: Any) -> Attack:
  """`evals/attacks/pia.py` is named 'pia'; its fields are those of its `Attack`, in their ranges.

  Raises:
    ValueError: no such attack, no such field, or a number outside its range.
  """
  made = errors.build(CHOICES.module(name).Attack, f"membership attack {name}", fields)
  ranges.check(made)
  return made


def scaled(t: int, process: Diffusion) -> int:
  """The time of `process` that has the place of t among 1000; raises ValueError for a short T."""
  if process.T < SHORTEST:
    raise ValueError(
      f"T {process.T} is too short for membership attacks, whose times are parts of {T}; use "
      f"process.T of {SHORTEST} or more, or leave the metric out of config.eval.metrics"
    )
  return round(t * process.T / T)


def mean_over(
  at: Callable[[Array, Array], Array], times: Times, process: Diffusion, n: int, rng: Array
) -> Float[Array, " N"]:
  """The mean over the times of at(t [n], key) -> [n], each with a key of its own."""
  when = [jnp.full(n, scaled(t, process)) for t in times]
  scores = [at(t, jax.random.fold_in(rng, i)) for i, t in enumerate(when)]
  return jnp.mean(jnp.stack(scores), axis=0)


def power(x: Float[Array, "N H W C"], p: int) -> Float[Array, " N"]:
  """sum |x|^p of each image: its p-norm to the p-th."""
  return jnp.sum(jnp.abs(x) ** p, axis=(1, 2, 3))
