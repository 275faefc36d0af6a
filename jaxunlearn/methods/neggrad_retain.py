"""NegGrad with a retain term: ascent on what is to be unlearned, descent on what is kept.

    L = alpha L_r - L_a,   L_r and L_a the denoising losses of kept and forgotten records

The weak baseline of the class-unlearning papers (GA). Pixel sums, both.
"""

import dataclasses
import math

from jaxunlearn import methods


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  alpha: float = 1.0
  c_dropout: float = 0.1

  streams = ("x", "a")
  terms = ("x", "a")
  forwards = 2
  backwards = 2
  shared_forward = False

  def __post_init__(self):
    methods.check("alpha", self.alpha, 0 <= self.alpha < math.inf, "0 or more")
    methods.check("c_dropout", self.c_dropout, 0 <= self.c_dropout <= 1, "0 to 1")

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_two(process, batch["x"], batch["a"], rng, self.c_dropout)

  def losses(self, eps_fn, process, draws, extras):
    return methods.two_denoising_losses(eps_fn, process, draws), {}

  def combine(self, grads, extras):
    return methods.weighted(grads, (self.alpha, -1.0)), {}
