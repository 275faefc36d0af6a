"""The loss attack (Matsumoto et al., 2023): the model's loss is lower on what it trained on.

    s_t(x) = ||eps - e(gamma_t x + sigma_t eps, t)||_2^2,   eps ~ N(0, I)

One draw of the noise at each of 20 times, one network call each.
"""

import dataclasses

import jax

from jaxunlearn.evals import attacks


@dataclasses.dataclass(frozen=True)
class Attack:
  times: attacks.Times = tuple(range(10, 201, 10))

  def score(self, eps_fn, process, x, c, rng):
    def at(t, key):
      eps = jax.random.normal(key, x.shape)
      return attacks.power(eps - eps_fn(process.q_sample(x, t, eps), t, c), 2)

    return attacks.mean_over(at, self.times, process, len(x), rng)
