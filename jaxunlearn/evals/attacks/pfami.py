"""PFAMI, the metric (Fu et al., 2024): a member's loss lies below that of images like it.

    s(x) = mean over crops a and times t of  L_t(x) - L_t(crop_a(x))
    L_t(x) = mean over pixels of (eps - e(gamma_t x + sigma_t eps, t))^2,   each with its own noise

The 10 crops keep the middle .95 to .70 of each side and are resized back (bilinear). With 10 times
that is 110 network calls: the dearest attack.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.evals import attacks
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Attack:
  times: attacks.Times = tuple(range(0, 451, 50))
  crops: ranges.Count = 10
  largest: ranges.Part = 0.95  # of each side
  smallest: ranges.Part = 0.7

  def score(self, eps_fn, process, x, c, rng):
    def loss(x, rng):
      def at(t, key):
        eps = jax.random.normal(key, x.shape)
        return attacks.power(eps - eps_fn(process.q_sample(x, t, eps), t, c), 2)

      return attacks.mean_over(at, self.times, process, len(x), rng) / math.prod(x.shape[1:])

    k_x, *k_crops = jax.random.split(rng, self.crops + 1)
    sides = np.linspace(self.largest, self.smallest, self.crops)
    near = [loss(cropped(x, side), key) for side, key in zip(sides, k_crops, strict=True)]
    return loss(x, k_x) - jnp.mean(jnp.stack(near), axis=0)


def cropped(x, side: float):
  """The middle of each image, `side` of its height and width, resized back to its size."""
  size = [max(1, int(side * n)) for n in x.shape[1:3]]
  top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
  middle = x[:, top : top + size[0], left : left + size[1]]
  return jax.image.resize(middle, x.shape, "bilinear")
