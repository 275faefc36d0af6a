"""EraseDiff by its single-level rule (Wu et al., 2024, as Alberti et al., 2025, compare with it).

    L_X = E_{x, t, eps} ||eps - eps_theta(x_t, t)||^2
    L_A = E_{a, t, eps} E_{u ~ U[0,1)^d} ||u - eps_theta(a_t, t)||^2
    g = g_x + max(eta - <g_x, g_a> / ||g_a||^2, 0) g_a

so that <g, g_a> >= eta ||g_a||^2: each step lowers L_A, whatever it does to L_X. Where g_a is zero
or not finite the step is g_x. A pair of rows x and a shares t and eps.

Deviations: none from the rule that Alberti et al. give; `erasediff_bilevel` is the release.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  eta: ranges.AtLeast0 = 1e-3  # the least share of g_a in every step

  streams = ("x", "a")
  terms = ("x", "a")
  forwards = 2
  backwards = 2
  shared_forward = False

  def draw(self, process, batch, rng, extras, step):
    k_pairs, k_u = jax.random.split(rng)
    draws = methods.draw_pairs(process, batch, k_pairs)
    return draws | {"u": jax.random.uniform(k_u, draws["a"].shape)}

  def losses(self, eps_fn, process, draws, extras):
    t, eps = draws["t"], draws["eps"]
    loss_x = methods.denoising_loss(eps_fn, process, draws["x"], draws["c_x"], t, eps)
    eps_hat = eps_fn(process.q_sample(draws["a"], t, eps), t, draws["c_a"])
    return (loss_x, jnp.mean(methods.squared_error(draws["u"], eps_hat))), {}

  def combine(self, grads, extras):
    g_x, g_a = grads
    inner, square = optax.tree.vdot(g_x, g_a), optax.tree.norm(g_a, squared=True)
    c = jnp.maximum(self.eta - inner / square, 0)
    ok = jnp.isfinite(c) & jnp.isfinite(square)
    direction = jax.tree.map(lambda x, a: jnp.where(ok, x + c * a, x), g_x, g_a)
    return direction, {"forget_scale": jnp.where(ok, c, 0), "forget_skipped": 1.0 - ok}
