"""Denoising, the loss of DDPM (Ho et al., 2020, eq. 14, L_simple), as a sum over pixels.

    L = E_{x, t, eps} ||eps - eps_theta(x_t, t)||^2

One objective for many runs, which differ only in their stream `x`: pretraining (all records),
retraining and naive deletion (the retained ones), a relearning attack, a CDM compartment.
"""

import dataclasses

from jaxunlearn import methods


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  def draw(self, process, batch, rng, extras):
    x = batch["x"]
    return {"x": x.image, "c": x.c} | methods.draw_noise(process, x.image.shape, rng)

  def losses(self, eps_fn, process, draws, extras):
    return (methods.denoising_loss(eps_fn, process, **draws),), {}
