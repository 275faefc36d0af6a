"""SISS (No IS): SISS without importance sampling (Alberti et al., ICLR 2025, arXiv 2503.01034).

    L = L_{X\\A} - s' L_A,   each E ||eps - eps_theta(., t)||^2 at its own noised image

Two forward passes where SISS has one. A pair of rows shares t and eps, and the forget gradient
gets its norm by the same rule: the step is g_x - c g_a, `methods.subtract_scaled`.

Deviations: none.
"""

import dataclasses

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  forget_norm: ranges.Above0 | None = None  # ||c g_a||, the paper's scaling_norm; None: relative
  forget_ratio: ranges.Above0 = 0.1  # ||c g_a|| / ||g_x||, where forget_norm is None

  streams = ("x", "a")
  terms = ("x", "a")
  forwards = 2
  backwards = 2
  shared_forward = False

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_pairs(process, batch, rng)

  def losses(self, eps_fn, process, draws, extras):
    t, eps = draws["t"], draws["eps"]
    loss_x = methods.denoising_loss(eps_fn, process, draws["x"], draws["c_x"], t, eps)
    loss_a = methods.denoising_loss(eps_fn, process, draws["a"], draws["c_a"], t, eps)
    return (loss_x, loss_a), {}

  def combine(self, grads, extras):
    return methods.subtract_scaled(*grads, self.forget_norm, self.forget_ratio)
