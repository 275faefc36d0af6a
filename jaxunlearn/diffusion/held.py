"""A noise predictor that holds something from one call of a sampler to the next.

    eps = predict(held, x_t, t, c),   held = measure(x_t, t, c) at each `every`-th call

What is held are, for instance, the weights of a composition. Called by itself, as metrics do, it
measures at each call. A sampler carries what `first` gives through `call`, where any other
predictor holds nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
  """`predict` and `measure` are pytrees (`jax.tree_util.Partial`)."""

  predict: Callable[..., Array]  # (held, x_t, t, c) -> eps
  measure: Callable[..., Tree]  # (x_t, t, c) -> held
  every: int = dataclasses.field(metadata={"static": True})

  def __call__(self, x_t: Array, t: Array, c: Any = None) -> Array:
    return self.predict(self.measure(x_t, t, c), x_t, t, c)


def first(eps_fn: Any, x: Array) -> Tree:
  """What a sampler that starts from x carries beside it: nothing for most predictors."""
  if not isinstance(eps_fn, Held):
    return ()
  t = jax.ShapeDtypeStruct((len(x),), jnp.int32)
  shapes = jax.eval_shape(eps_fn.measure, x, t)
  return jnp.int32(0), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def call(eps_fn: Any, carried: Tree, x_t: Array, t: Array, c: Any) -> tuple[Array, Tree]:
  """eps, and what is carried to the next call."""
  if not isinstance(eps_fn, Held):
    return eps_fn(x_t, t, c), ()
  count, held = carried
  held = jax.lax.cond(count % eps_fn.every == 0, lambda: eps_fn.measure(x_t, t, c), lambda: held)
  return eps_fn.predict(held, x_t, t, c), (count + 1, held)
