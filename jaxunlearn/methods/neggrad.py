"""NegGrad: gradient ascent on the denoising loss of what is to be unlearned.

    maximise L_A = E_{a ~ A, t, eps} ||eps - eps_theta(a_t, t)||^2

No scaling and nothing that holds the rest of the model: it diverges, and is a baseline of
Alberti et al. (2025). The step is -g_a.

Deviations: none.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import methods


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  streams = ("a",)
  terms = ("a",)

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_one(process, batch["a"], rng)

  def losses(self, eps_fn, process, draws, extras):
    return methods.one_denoising_loss(eps_fn, process, draws)

  def combine(self, grads, extras):
    return jax.tree.map(jnp.negative, grads[0]), {}
