"""SFR-on: forget steps and remain steps in turn, by Fisher saliency (Huang et al., NeurIPS 2024).

    even steps   -alpha_i mean_b(coef_b l_b), l_b the denoising loss of forgotten record b,
                 coef_b = l_b^-1/2, detached, of mean 1; only where F(forget) / F(remain) >= gamma
    odd steps    the denoising loss of the kept records

One iteration is one step of each, under one Adam; i counts iterations and alpha_i falls from alpha
to 0 by a cosine. F is the mean over batches of clip(g)^2 at the start, g the gradient of a batch's
denoising loss with the guided output, (1 + w) eps_c - w eps_null. With mask_batch 1, mask_guidance
0 and mask_clip None it is the diagonal Fisher information. The mean of coef is over the whole
batch. Pixel sums.

Deviations:
  - Times are drawn independently; the release pairs t with T - 1 - t. The expectation is the same.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges
from jaxunlearn.methods import importance


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  alpha: ranges.AtLeast0 = 10.0
  power: ranges.AtLeast0 = 0.5
  gamma: ranges.AtLeast0 = 1.0  # the least F(forget) / F(remain) of a parameter that forgets
  iterations: ranges.Count = 150  # after which alpha is 0: half of config.train.steps
  c_dropout: ranges.Share = 0.1
  a_dropout: ranges.Share = 0.1  # the share of rows of `a` whose condition is null
  mask_rows: ranges.Count = 50_000  # records of each kind behind the mask; all, where fewer
  mask_batch: ranges.Count = 128
  mask_guidance: ranges.AtLeast0 = 2.0  # w
  mask_clip: ranges.Above0 | None = 1.0  # the norm of a batch's gradient behind the mask

  streams = ("x", "a")
  terms = ("x", "a")
  whole_batch = True

  def prepare(self, apply, params, process, data, rng):
    kind = {"rows": self.mask_rows, "batch": self.mask_batch, "w": self.mask_guidance}
    information = lambda name, key: importance.mean_square(
      importance.batch_gradients(
        apply, params, process, data[name], key, **kind, clip=self.mask_clip
      )
    )
    k_x, k_a = jax.random.split(rng)
    kept, forgotten = information("x", k_x), information("a", k_a)
    return {"mask": jax.tree.map(lambda f, r: f >= self.gamma * r, forgotten, kept)}

  def draw(self, process, batch, rng, extras, step):
    forget = step % 2 == 0
    x, a = batch["x"], batch["a"]
    draws = methods.draw_two(process, x, a, rng, self.c_dropout, self.a_dropout)
    progress = jnp.minimum(step // 2 / self.iterations, 1.0)
    alpha = self.alpha * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    turn = lambda a, x: None if x is None else jnp.where(forget, a, x)
    rows = (len(draws["x"]),)
    return {
      "image": turn(draws["a"], draws["x"]),
      "c": turn(draws["c_a"], draws["c_x"]),
      "t": turn(draws["t_a"], draws["t"]),
      "eps": turn(draws["eps_a"], draws["eps"]),
      "forget": jnp.broadcast_to(forget, rows),
      "alpha": jnp.broadcast_to(alpha, rows),
    }

  def losses(self, eps_fn, process, draws, extras):
    x_t = process.q_sample(draws["image"], draws["t"], draws["eps"])
    error = methods.squared_error(draws["eps"], eps_fn(x_t, draws["t"], draws["c"]))
    coef = jax.lax.stop_gradient(error) ** -self.power
    forget = -jnp.mean(draws["alpha"] * coef / jnp.mean(coef) * error)
    turn = draws["forget"][0]
    return (jnp.where(turn, 0, jnp.mean(error)), jnp.where(turn, forget, 0)), {}

  def needed(self, process, draws):
    return ~draws["forget"][0], draws["forget"][0]

  def combine(self, grads, extras):
    g_x, g_a = grads
    return methods.weighted((g_x, methods.masked(g_a, extras["mask"])), (1.0, 1.0)), {}
