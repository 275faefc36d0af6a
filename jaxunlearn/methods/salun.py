"""SalUn: random labels, on the most salient parameters only (Fan et al., ICLR 2024).

    mask = the half of all parameters with the largest |sum over batches of clip(grad L_a)|
    L_u = E ||eps_theta(a_t, t, c_u) - sg eps_theta(a_t, t, c')||^2 / d      c' another condition
    L = L_u + alpha L_r

L_u is a mean over the d pixels, L_r a sum over them (alpha is 3.07 on one scale, CIFAR-10). The
gradient is clipped, then masked. c' is what the stream `a` maps to (`to = "next"`: the class after
it). L_a is the denoising loss of `a` with the guided output, (1 + w) eps_c - w eps_null; t and eps
of the two terms are drawn apart. The passes for L_u drop their conditions, c_u and c' apart.

Deviations:
  - Times are drawn independently; the release pairs t with T - 1 - t. The expectation is the same.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges
from jaxunlearn.methods import importance


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  share: ranges.Part = 0.5  # of the parameters that may move
  alpha: ranges.AtLeast0 = 1e-3
  clip: ranges.Above0 = 1.0  # of the gradient, before the mask; of each batch's in the mask too
  c_dropout: ranges.Share = 0.1
  a_dropout: ranges.Share = 0.1  # the share of rows whose c_u, and c', is null
  mask_rows: ranges.Count = 50_000  # records behind the mask; all, where there are fewer
  mask_batch: ranges.Count = 128
  mask_guidance: ranges.AtLeast0 = 2.0  # w

  streams = ("x", "a")
  terms = ("x", "u")
  needs = ("c", "to")
  forwards = 3
  backwards = 2
  shared_forward = False

  def prepare(self, apply, params, process, data, rng):
    kind = {"rows": self.mask_rows, "batch": self.mask_batch, "w": self.mask_guidance}
    grads = importance.batch_gradients(
      apply, params, process, data["a"], rng, **kind, clip=self.clip
    )
    return {"mask": importance.largest(importance.summed(grads), self.share)}

  def draw(self, process, batch, rng, extras, step):
    x, a = batch["x"], batch["a"]
    draws = methods.draw_two(process, x, a, rng, self.c_dropout, self.a_dropout)
    # Not 0 to 3: those are keys of `draw_two`.
    to = methods.drop_conditions(a.to, self.a_dropout, jax.random.fold_in(rng, 4))
    return draws | {"to": to}

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
