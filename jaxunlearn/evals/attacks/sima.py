"""SimA (Rao et al., 2025): at a member the model sees little noise in the image itself.

    s_t(x) = ||e(x, t)||_4^4,   x not noised

At 21 times, one network call each.
"""

import dataclasses

from jaxunlearn.evals import attacks


@dataclasses.dataclass(frozen=True)
class Attack:
  times: attacks.Times = tuple(range(0, 201, 10))

  def score(self, eps_fn, process, x, c, rng):
    def at(t, key):
      del key  # nothing is drawn
      return attacks.power(eps_fn(x, t, c), 4)

    return attacks.mean_over(at, self.times, process, len(x), rng)
