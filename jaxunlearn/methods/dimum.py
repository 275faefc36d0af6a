"""DiMUM: unlearn a concept by memorising something else in its place (Yuan et al., 2025).

    L_r = E_{(x, c) ~ D_r}  ||eps - eps_theta(x_t, t, c)||^2
    L_m = E_{alt ~ D_alt}   ||eps - eps_theta(alt_t, t, c_u)||^2        c_u the condition to forget
    L = L_r + lam L_m

Only the loss that trained the model, on other data: its minimum is one of the retain loss too, so
that an attack by relearning the retained data has no gradient to follow. The images to forget are
not needed. D_alt is the stream `alt`, whose conditions are those to forget (`c = "forget"`): a
class, a mixture of them, a small fixed set (`first`), another data set or generated samples. The
condition is dropped for a share of D_r and never for D_alt. Pixel sums, both.

Deviations: none known. Where conditions are dropped, and lam, are chosen here: the paper's own were
not at hand.
"""

import dataclasses

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.TwoSets):
  lam: ranges.AtLeast0 = 1.0

  streams = ("x", "alt")
  terms = ("x", "alt")
  needs = ("c", "concept")

  def combine(self, grads, extras):
    return methods.weighted(grads, (1.0, self.lam)), {}
