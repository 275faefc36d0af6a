"""NegGrad with a retain term: ascent on what is to be unlearned, descent on what is kept.

    L = alpha L_r - L_a,   L_r and L_a the denoising losses of kept and forgotten records

The weak baseline of the class-unlearning papers (GA). Pixel sums, both. Conditions are dropped for
a share of the rows of both, as in SalUn's release.

Deviations:
  - Times are drawn independently; the release pairs t with T - 1 - t. The expectation is the same.
"""

import dataclasses

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.TwoSets):
  alpha: ranges.AtLeast0 = 1.0
  a_dropout: ranges.Share = 0.1  # the share of rows of `a` whose condition is null

  def draw(self, process, batch, rng, extras, step):
    x, a = batch["x"], batch["a"]
    return methods.draw_two(process, x, a, rng, self.c_dropout, self.a_dropout)

  def combine(self, grads, extras):
    return methods.weighted(grads, (self.alpha, -1.0)), {}
