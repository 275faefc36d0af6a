"""PIA (Kong et al., 2024): the noise that the model sees in x itself is the noise that is added.

    e0 = e(x, 0),   s_t(x) = ||e0 - e(gamma_t x + sigma_t e0, t)||_4^4

The times are 1 to 5 intervals of 20: 6 network calls.
"""

import dataclasses

import jax.numpy as jnp

from jaxunlearn.evals import attacks


@dataclasses.dataclass(frozen=True)
class Attack:
  times: attacks.Times = (20, 40, 60, 80, 100)

  def score(self, eps_fn, process, x, c, rng):
    e_0 = self.first(eps_fn(x, jnp.zeros(len(x), jnp.int32), c))

    def at(t, key):
      del key  # nothing is drawn
      return attacks.power(e_0 - eps_fn(process.q_sample(x, t, e_0), t, c), 4)

    return attacks.mean_over(at, self.times, process, len(x), rng)

  def first(self, e_0):
    """The noise to add, of the noise that is seen."""
    return e_0
