"""SecMI, the statistic (Duan et al., 2023): a member is carried on and back with a smaller error.

With phi_{s->t}(x) = gamma_t x0(x, s) + sigma_t e(x, s), DDIM's step from the time s to t:

    x' = x carried by phi over 0, k, 2k, ... t_sec - k
    s(x) = ||x' - phi_{t_sec -> t_sec - k}(phi_{t_sec - k -> t_sec}(x'))||_2^2

Published: t_sec 100 and k 10, 11 network calls.
"""

import dataclasses

import jax.numpy as jnp

from jaxunlearn.evals import attacks


@dataclasses.dataclass(frozen=True)
class Attack:
  t_sec: attacks.Time = 100
  k: attacks.Time = 10

  def __post_init__(self):
    if not 0 < self.k < self.t_sec:
      raise ValueError(f"k {self.k} and t_sec {self.t_sec}: use a k of 1 or more, under t_sec")

  def score(self, eps_fn, process, x, c, rng):
    del rng  # nothing is drawn

    def carried(x, s, t):
      s, t = (jnp.full(len(x), attacks.scaled(time, process)) for time in (s, t))
      eps = eps_fn(x, s, c)
      return process.q_sample(process.x0(x, s, eps), t, eps)

    last = self.t_sec - self.k
    for s in range(0, last, self.k):
      x = carried(x, s, min(s + self.k, last))
    back = carried(carried(x, last, self.t_sec), self.t_sec, last)
    return attacks.power(x - back, 2)
