"""NegGrad with a retain term: ascent on what is to be unlearned, descent on what is kept.

    L = alpha L_r - L_a,   L_r and L_a the denoising losses of kept and forgotten records

The weak baseline of the class-unlearning papers (GA). Pixel sums, both.
"""

import dataclasses

from jaxunlearn import methods, ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.TwoSets):
  alpha: ranges.AtLeast0 = 1.0

  def combine(self, grads, extras):
    return methods.weighted(grads, (self.alpha, -1.0)), {}
