"""SalUn: random labels, on the most salient parameters only (Fan et al., ICLR 2024).

    mask = the half of all parameters with the largest |sum over batches of grad L_a|
    L_u = E ||eps_theta(a_t, t, c_u) - sg eps_theta(a_t, t, c')||^2 / d      c' another condition
    L = L_u + alpha L_r

L_u is a mean over the d pixels, L_r a sum over them (alpha is 3.07 on one scale, CIFAR-10). The
gradient is clipped, then masked. c' is what the stream `a` maps to (`to = "next"`: the class after
it). L_a is the denoising loss of `a`; t and eps of the two terms are drawn apart.
"""

import dataclasses
import math

import jax.numpy as jnp

from jaxunlearn import methods, ranges
from jaxunlearn.methods import importance


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  share: ranges.Part = 0.5  # of the parameters that may move
  alpha: ranges.AtLeast0 = 1e-3
  clip: ranges.Above0 = 1.0  # of the gradient, before the mask; of each batch's in the mask too
  c_dropout: ranges.Share = 0.1
  mask_rows: ranges.Count = 512  # records behind the mask
  mask_batch: ranges.Count = 64

  streams = ("x", "a")
  terms = ("x", "u")
  needs = ("c", "to")
  forwards = 3
  backwards = 2
  shared_forward = False

  def prepare(self, apply, params, process, data, rng):
    batches = {"batch": self.mask_batch, "rows": self.mask_rows, "clip": self.clip}
    total = importance.summed_gradient(apply, params, process, data["a"], rng, **batches)
    return {"mask": importance.largest(total, self.share)}

  def draw(self, process, batch, rng, extras, step):
    draws = methods.draw_two(process, batch["x"], batch["a"], rng, self.c_dropout)
    return draws | {"to": batch["a"].to}

  def losses(self, eps_fn, process, draws, extras):
    x, c, t, eps = (draws[name] for name in ("x", "c_x", "t", "eps"))
    loss_x = methods.denoising_loss(eps_fn, process, x, c, t, eps)
    a_t = process.q_sample(draws["a"], draws["t_a"], draws["eps_a"])
    target = extras["current"](a_t, draws["t_a"], draws["to"])
    error = methods.squared_error(target, eps_fn(a_t, draws["t_a"], draws["c_a"]))
    return (loss_x, jnp.mean(error) / math.prod(a_t.shape[1:])), {}

  def combine(self, grads, extras):
    total = methods.weighted(grads, (self.alpha, 1.0))
    return methods.masked(methods.clipped(total, self.clip), extras["mask"]), {}
