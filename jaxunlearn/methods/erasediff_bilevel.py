"""EraseDiff as it was first given: a bi-level problem (Wu et al., 2024), solved by BOME.

    f(theta) = E ||eps_theta(a_t, t, c_u) - sg eps_theta(a_t, t, c')||^2      c' a random condition
    phi_0 = theta, phi_{k+1} = phi_k - inner_rate grad f(phi_k),   K steps
    q = f(theta) - f(phi_K) >= 0: how far theta is from having forgotten; phi_K is held fixed
    g = g_r + max((eta q - <g_r, g_q>) / ||g_q||^2, 0) g_q          g_r of the retain loss

(BOME: Liu et al., NeurIPS 2022, eq. 6, with eta q for the rate at which q is to fall.) The inner
steps see the batch, noise and targets of their outer step. The stream `a` maps to c' by
`to = "random"`. Pixel sums. `erasediff` is the single-level rule without conditions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import methods, ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  eta: ranges.AtLeast0 = 0.1
  inner_steps: ranges.Count = 2  # K
  inner_rate: ranges.Above0 = 1e-5
  c_dropout: ranges.Share = 0.1

  streams = ("x", "a")
  terms = ("x", "u")
  needs = ("c", "to")
  whole_batch = True
  shared_forward = False

  @property
  def forwards(self):
    return 3 + self.inner_steps

  @property
  def backwards(self):
    return 1 + self.inner_steps

  def draw(self, process, batch, rng, extras, step):
    draws = methods.draw_two(process, batch["x"], batch["a"], rng, self.c_dropout)
    return draws | {"to": batch["a"].to}

  def losses(self, eps_fn, process, draws, extras):
    x, c, t, eps = (draws[name] for name in ("x", "c_x", "t", "eps"))
    loss_x = methods.denoising_loss(eps_fn, process, x, c, t, eps)
    return (loss_x, self._distance(process, draws, extras["current"])(eps_fn)), {}

  def _distance(self, process, draws, target_fn):
    """f, a function of the noise predictor, with its target taken now."""
    a_t = process.q_sample(draws["a"], draws["t_a"], draws["eps_a"])
    target = jax.lax.stop_gradient(target_fn(a_t, draws["t_a"], draws["to"]))
    return lambda eps_fn: jnp.mean(
      methods.squared_error(target, eps_fn(a_t, draws["t_a"], draws["c_a"]))
    )

  def gradients(self, apply, params, process, draws, extras, needed=None):
    bound = lambda p: functools.partial(apply, p)
    x, c, t, eps = (draws[name] for name in ("x", "c_x", "t", "eps"))
    retain = lambda p: methods.denoising_loss(bound(p), process, x, c, t, eps)
    distance = self._distance(process, draws, bound(params))
    f = jax.value_and_grad(lambda p: distance(bound(p)))
    loss_x, g_x = jax.value_and_grad(retain)(params)
    loss_u, g_u = f(params)
    phi, inner = params, g_u
    for k in range(self.inner_steps):
      phi = jax.tree.map(lambda p, g: p - self.inner_rate * g, phi, inner)
      inner = f(phi)[1] if k + 1 < self.inner_steps else None
    q = jnp.maximum(loss_u - distance(bound(phi)), 0)
    square = optax.tree.norm(g_u, squared=True)
    share = jnp.maximum((self.eta * q - optax.tree.vdot(g_x, g_u)) / square, 0)
    share = jnp.where(jnp.isfinite(share), share, 0)
    metrics = {"loss_x": loss_x, "loss_u": loss_u, "q": q, "forget_scale": share}
    passes = jnp.float32(self.forwards + 2 * self.backwards)
    return (g_x, jax.tree.map(lambda g: share * g, g_u)), metrics | {"passes": passes}
