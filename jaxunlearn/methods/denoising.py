"""Denoising, the loss of DDPM (Ho et al., 2020, eq. 14, L_simple), as a sum over pixels.

    L = E_{(x, c), t, eps} ||eps - eps_theta(x_t, t, c)||^2

One objective for many runs, which differ only in their stream `x`: pretraining (all records),
retraining and naive deletion (the retained ones), a relearning attack, a CDM compartment. Of a
conditional model the condition is dropped for a share of the rows (Ho and Salimans, 2022).

Deviations: none.
"""

import dataclasses

import jax

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  c_dropout: ranges.Share = 0.1  # the share of rows whose condition is null

  def draw(self, process, batch, rng, extras, step):
    x = batch["x"]
    # Not 0 or 1: those are the keys that `draw_noise` splits.
    c = methods.drop_conditions(x.c, self.c_dropout, jax.random.fold_in(rng, 2))
    return {"x": x.image, "c": c} | methods.draw_noise(process, x.image.shape, rng)

  def losses(self, eps_fn, process, draws, extras):
    return (methods.denoising_loss(eps_fn, process, **draws),), {}
