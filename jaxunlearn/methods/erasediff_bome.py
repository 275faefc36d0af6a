"""EraseDiff's bi-level problem by BOME's own control (Wu et al., 2024; Liu et al., NeurIPS 2022).

    f(theta) = E ||eps_theta(a_t, t, c_u) - sg eps_theta(a_t, t, c')||^2      c' a random condition
    q(theta) = f(theta) - f(phi) >= 0          phi a minimum of f: how far theta is from forgotten
    g = g_r + max((phi_q - <g_r, g_q>) / ||g_q||^2, 0) g_q,   phi_q = eta ||g_q||^2
      = g_r + max(eta - <g_r, g_q> / ||g_q||^2, 0) g_q        g_r of the retain loss

BOME finds phi by steps of its own and holds it fixed (eq. 5), so that g_q = grad f(theta) and phi
plays no part in g: the steps are not taken. The rule is then that of `erasediff`, with random
labels for random noise. The stream `a` maps to c' by `to = "random"`. Pixel sums.

Deviations: this is no method of a paper. `erasediff_bilevel` is what the authors released.
"""

import dataclasses

import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges
from jaxunlearn.methods import erasediff


@dataclasses.dataclass(frozen=True)
class Method(erasediff.Method):
  eta: ranges.AtLeast0 = 0.1
  c_dropout: ranges.Share = 0.1

  terms = ("x", "u")
  needs = ("c", "to")
  forwards = 3

  def draw(self, process, batch, rng, extras, step):
    draws = methods.draw_two(process, batch["x"], batch["a"], rng, self.c_dropout)
    return draws | {"to": batch["a"].to}

  def losses(self, eps_fn, process, draws, extras):
    x, c, t, eps = (draws[name] for name in ("x", "c_x", "t", "eps"))
    loss_x = methods.denoising_loss(eps_fn, process, x, c, t, eps)
    a_t = process.q_sample(draws["a"], draws["t_a"], draws["eps_a"])
    target = extras["current"](a_t, draws["t_a"], draws["to"])
    error = methods.squared_error(target, eps_fn(a_t, draws["t_a"], draws["c_a"]))
    return (loss_x, jnp.mean(error)), {}
