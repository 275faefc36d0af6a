"""Selective Amnesia: continual learning turned to forgetting (Heng and Soh, NeurIPS 2023).

    L = E_{u ~ U[-1,1]^d} ||eps - eps_theta(u_t, t, c_u)||^2      noise in place of the concept
      + E_{(x, c)} ||eps - eps_theta(x_t, t, c)||^2                generative replay
      + lam sum_i F_i (theta_i - theta0_i)^2

The stream `x` is what the pretrained model generated under the other conditions (`samples:FOLDER`),
and F, the diagonal Fisher information of theta0, is taken on it. Pixel sums.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.methods import importance


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  lam: float = 10.0
  c_dropout: float = 0.1
  fisher_rows: int = 128

  streams = ("x", "a")
  terms = ("x", "u")
  forwards = 2
  backwards = 2
  shared_forward = False

  def __post_init__(self):
    methods.check("lam", self.lam, 0 <= self.lam < math.inf, "0 or more")
    methods.check("c_dropout", self.c_dropout, 0 <= self.c_dropout <= 1, "0 to 1")
    methods.check("fisher_rows", self.fisher_rows, self.fisher_rows >= 1, "1 or more")

  def prepare(self, apply, params, process, data, rng):
    information = importance.fisher(apply, params, process, data["x"], rng, self.fisher_rows)
    return {"fisher": information, "origin": jax.tree.map(jnp.asarray, params)}

  def draw(self, process, batch, rng, extras, step):
    k_u, k_rows = jax.random.split(rng)
    u = jax.random.uniform(k_u, batch["a"].image.shape, minval=-1.0)
    forget = batch["a"]._replace(image=u)
    return methods.draw_two(process, batch["x"], forget, k_rows, self.c_dropout)

  def losses(self, eps_fn, process, draws, extras):
    return methods.two_denoising_losses(eps_fn, process, draws), {}

  def penalty(self, params, extras):
    distance = jax.tree.map(
      lambda f, p, p0: jnp.sum(f * (p - p0) ** 2), extras["fisher"], params, extras["origin"]
    )
    return self.lam * sum(jax.tree.leaves(distance))
