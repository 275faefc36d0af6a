"""EraseDiff as its authors released it: a bi-level problem in turns (Wu et al., 2024).

    f(theta) = E ||eps_theta(a_t, t, c_u) - sg eps_theta(a_t, t, c')||^2 / d    c' another condition
    L_r(theta) = E ||eps - eps_theta(x_t, t, c)||^2 / d                         d pixels
    inner steps   phi <- Adam(grad f(phi)) from phi = theta; then theta is put back
    outer steps   theta <- Adam(grad L_r(theta) + share grad f(theta))
    share = lam, or where lam is None  max(eta - cos(grad L_r, grad f), 0)

One Adam serves both and is not put back: its moments are all that the inner steps leave, since
f(phi) is held fixed and has no gradient. A turn is `inner_steps` steps, then `outer_steps`; all of
them count in config.train.steps. The released run has 8 turns of 72 (twice the forgotten images)
and 36: 288 outer steps. The stream `a` maps to c' by `to = "random"`. A row of x and a row of a
share t; the passes for f drop their conditions, c_u and c' apart.

Deviations:
  - Times are drawn independently; the release pairs t with T - 1 - t. The expectation is the same.
  - c' is random for each row, not for each batch. The expectation is the same.
  - Inner steps are clipped as outer ones are. Gradients of means over pixels seldom reach a norm
    of 1, and Adam forgets their scale.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  lam: ranges.AtLeast0 | None = 0.1  # the share of grad f in an outer step; None: by eta
  eta: ranges.AtLeast0 = 0.1  # the least cosine that a share is to give
  inner_steps: ranges.Count = 72
  outer_steps: ranges.Count = 36
  c_dropout: ranges.Share = 0.0  # of x
  a_dropout: ranges.Share = 0.1  # the share of rows whose c_u, and c', is null

  streams = ("x", "a")
  terms = ("x", "u")
  needs = ("c", "to")
  forwards = 3
  backwards = 2
  shared_forward = False

  def prepare(self, apply, params, process, data, rng):
    return {"theta": jax.tree.map(jnp.asarray, params)}  # where inner steps set out from

  def draw(self, process, batch, rng, extras, step):
    x, a = batch["x"], batch["a"]
    draws = methods.draw_two(process, x, a, rng, self.c_dropout, self.a_dropout)
    # Not 0 to 3: those are keys of `draw_two`.
    to = methods.drop_conditions(a.to, self.a_dropout, jax.random.fold_in(rng, 4))
    inner = jnp.broadcast_to(self._inner(step), len(x.image))
    return draws | {"t_a": draws["t"], "to": to, "inner": inner}

  def losses(self, eps_fn, process, draws, extras):
    x, c, t, eps = (draws[name] for name in ("x", "c_x", "t", "eps"))
    d = math.prod(x.shape[1:])
    loss_x = methods.denoising_loss(eps_fn, process, x, c, t, eps) / d
    a_t = process.q_sample(draws["a"], draws["t_a"], draws["eps_a"])
    target = extras["current"](a_t, draws["t_a"], draws["to"])
    error = methods.squared_error(target, eps_fn(a_t, draws["t_a"], draws["c_a"]))
    return (jnp.where(draws["inner"][0], 0, loss_x), jnp.mean(error) / d), {}

  def combine(self, grads, extras):
    g_x, g_u = grads
    norm_x, norm_u = optax.tree.norm(g_x), optax.tree.norm(g_u)
    share = self.lam
    if share is None:
      cosine = optax.tree.vdot(g_x, g_u) / (norm_x * norm_u + 1e-8)
      share = jnp.maximum(self.eta - cosine, 0)
    share = jnp.where(norm_x == 0, 1.0, share)  # an inner step has no L_r
    return methods.weighted(grads, (1.0, share)), {"forget_scale": share}

  def settle(self, params, extras, step):
    """Puts theta back after the last inner step, and keeps it after each outer one."""
    inner, last = self._inner(step), self._inner(step) & ~self._inner(step + 1)
    choose = lambda which: lambda old, new: jnp.where(which, old, new)
    params = jax.tree.map(choose(last), extras["theta"], params)
    return params, {"theta": jax.tree.map(choose(inner), extras["theta"], params)}

  def _inner(self, step):
    return jnp.asarray(step) % (self.inner_steps + self.outer_steps) < self.inner_steps
