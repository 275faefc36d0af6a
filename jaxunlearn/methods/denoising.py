"""Denoising, the loss of DDPM (Ho et al., 2020, eq. 14, L_simple), as a sum over pixels.

    L = E_{x, t, eps} ||eps - eps_theta(x_t, t)||^2

One objective for many runs, which differ only in their stream `x`: pretraining (all records),
retraining and naive deletion (the retained ones), a relearning attack, a CDM compartment.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn import methods


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  def draw(self, process, batch, rng, extras) -> Any:
    x = batch["x"]
    k_t, k_eps = jax.random.split(rng)
    return {
      "x": x.image,
      "c": x.c,
      "t": process.sample_t(k_t, len(x.image)),
      "eps": jax.random.normal(k_eps, x.image.shape),
    }

  def losses(self, eps_fn, process, draws, extras):
    x_t = process.q_sample(draws["x"], draws["t"], draws["eps"])
    eps_hat = eps_fn(x_t, draws["t"], draws["c"])
    return (jnp.mean(jnp.sum((draws["eps"] - eps_hat) ** 2, axis=(1, 2, 3))),), {}
