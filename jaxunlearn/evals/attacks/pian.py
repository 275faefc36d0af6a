"""PIAN (Kong et al., 2024): PIA whose noise is as large as that of a normal distribution.

e0 <- e0 sqrt(2/pi) / mean |e0|,   the mean over the entries of one image
"""

import dataclasses

import jax.numpy as jnp

from jaxunlearn.evals.attacks import pia


@dataclasses.dataclass(frozen=True)
class Attack(pia.Attack):
  def first(self, e_0):
    mean = jnp.mean(jnp.abs(e_0), axis=(1, 2, 3), keepdims=True)
    return e_0 * (2 / jnp.pi) ** 0.5 / mean
