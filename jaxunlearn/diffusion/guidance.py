"""Classifier-free guidance (Ho and Salimans, 2022): a noise predictor made of a conditional one."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.diffusion import NULL, EpsFn


def guided(eps_fn: EpsFn, w: float) -> EpsFn:
  """(1 + w) eps_c - w eps_null, by one forward pass of 2B rows."""
  return jax.tree_util.Partial(guided_by, eps_fn, jnp.float32(w)) if w else eps_fn


def unguided(eps_fn: Any) -> EpsFn:
  """The noise predictor under the guidance."""
  return eps_fn.args[0] if getattr(eps_fn, "func", None) is guided_by else eps_fn


def scale_of(eps_fn: Any) -> float:
  """w of a predictor that `guided` made; 0 for any other."""
  return float(eps_fn.args[1]) if unguided(eps_fn) is not eps_fn else 0.0


def guided_by(
  eps_fn: EpsFn, w: jax.Array, x_t: jax.Array, t: jax.Array, c: Any = None
) -> jax.Array:
  """The same with a traced w, at (x_t, t, c)."""
  if c is None:
    return eps_fn(x_t, t)
  eps_c, eps_null = branches(eps_fn, x_t, t, c)
  return (1 + w) * eps_c - w * eps_null


def branches(eps_fn: EpsFn, x_t: jax.Array, t: jax.Array, c: Any) -> tuple[jax.Array, jax.Array]:
  """eps_c and eps_null, by one forward pass of 2B rows."""
  both = jnp.concatenate([c, jnp.full_like(c, NULL)])
  eps = eps_fn(jnp.tile(x_t, (2, 1, 1, 1)), jnp.tile(t, 2), both)
  return tuple(jnp.split(eps, 2))  # type: ignore[return-value]
