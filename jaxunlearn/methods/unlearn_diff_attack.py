"""UnlearnDiffAtk, an attack: tokens before a prompt that bring it back (Zhang et al., ECCV 2024).

    minimise over k tokens alone  E_{a, eps} ||eps - eps_theta(a_t, t, tokens + prompt)||^2

A token is a point of the simplex over the vocabulary, of which the heaviest entry is taken: the
gradient passes straight through. After each step every point is put back on the simplex, the
nearest there. a are pictures of the concept, with its own prompts; the network itself denoises,
without guidance. t is drawn from one of `times` bins for `per_time` steps, then from the next, from
the latest down.

Needs config.prompts.prefix = k and config.trained.pattern = "^prefix$": all else is frozen. The
release has k = 5, AdamW at 1e-2 with a decay of .1, and attacks one picture at a time.

Deviations:
  - The token is the heaviest, not one drawn by the weights: the samples of an evaluation have the
    token that was trained.
  - The release has one time a bin.
  - A batch of pictures is attacked at once, by one prefix.
  - Tokens begin as random points of the simplex.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges

HALVINGS = 50


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  times: ranges.Count = 50
  per_time: ranges.Count = 40  # steps

  streams = ("a",)
  terms = ("a",)
  needs = ("c", "text")

  def start(self, params, data, rng, text):
    """Raises ValueError where there is no prefix to search for."""
    if "prefix" not in params:
      raise ValueError(
        "method unlearn_diff_attack searches for tokens and there are none; set "
        "config.prompts.prefix to 5 and config.trained.pattern to '^prefix$'"
      )
    drawn = jax.random.uniform(rng, params["prefix"].shape)
    return {**params, "prefix": drawn / drawn.sum(axis=1, keepdims=True)}

  def draw(self, process, batch, rng, extras, step):
    draws = methods.draw_one(process, batch["a"], rng)
    bin_ = jnp.asarray(step) // self.per_time % self.times
    # Not 0 or 1: those are the keys that `draw_noise` splits.
    inside = jax.random.uniform(jax.random.fold_in(rng, 2), draws["t"].shape)
    t = process.T - (bin_ + inside) * (process.T / self.times)
    return draws | {"t": jnp.clip(t, 0, process.T - 1).astype(jnp.int32)}

  def losses(self, eps_fn, process, draws, extras):
    return methods.one_denoising_loss(eps_fn, process, draws)

  def combine(self, grads, extras):
    """Nothing but the tokens moves, whatever the run trains."""
    still = jax.tree.map(jnp.zeros_like, grads[0])
    return {**still, "prefix": grads[0]["prefix"]}, {}

  def settle(self, params, extras, step):
    return {**params, "prefix": on_simplex(params["prefix"])}, extras


def on_simplex(w):
  """The nearest point of the simplex to each row of w [k, V]: max(w - tau, 0) of sum 1.

  tau by bisection: the sum falls from at least 1 at max w - 1 to 0 at max w.
  """
  high = w.max(axis=1, keepdims=True)

  def halve(_, ends):
    low, high = ends
    middle = (low + high) / 2
    above = jnp.maximum(w - middle, 0).sum(axis=1, keepdims=True) >= 1
    return jnp.where(above, middle, low), jnp.where(above, high, middle)

  low, _ = jax.lax.fori_loop(0, HALVINGS, halve, (high - 1, high))
  point = jnp.maximum(w - low, 0)
  return point / point.sum(axis=1, keepdims=True)
