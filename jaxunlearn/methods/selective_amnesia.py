"""Selective Amnesia: continual learning turned to forgetting (Heng and Soh, NeurIPS 2023).

    L = E_{u ~ U[-1,1]^d} ||eps - eps_theta(u_t, t, c_u)||^2      noise in place of the concept
      + E_{(x, c)} ||eps - eps_theta(x_t, t, c)||^2                generative replay
      + lam sum_i F_i (theta_i - theta0_i)^2                      elastic weight consolidation, EWC
    F_i = E_{(x, c)} [(sum_{t=0}^{T-1} d/d theta_i ||eps_t - eps_theta(x_t, t, c)||^2)^2]  at theta0

F sums the gradients of all times of a record before it squares them, since the bound on log p(x)
is a sum over times. The stream `x` is what the pretrained model generated under the other
conditions (`samples:FOLDER`), and `all` the same with the concept (`all_samples:FOLDER`); F is
taken on it. A row of u and a row of x share t. Pixel sums.

What EWC does here. Were the model the distribution that it fits, F would be the curvature of the
sum over times, and sum_i F_i (theta_i - theta0_i)^2 / (2 T) that of the replay's loss, a mean over
times. So lam = 1 / (2 T), 5e-4, counts the replay once more, at its second order. The authors' lam
= 10 counts it 20,000 times more, which may hold the weights where they are: configs/audits.py has a
row of each.

Deviations:
  - Times are drawn independently; the release pairs t with T - 1 - t. The expectation is the same.
  - F is taken on images in [-1, 1], as the network is trained; the release leaves them in [0, 1].
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges
from jaxunlearn.methods import importance


@dataclasses.dataclass(frozen=True)
class Method(methods.TwoSets):
  c_dropout: ranges.Share = 0.0  # of the replay
  lam: ranges.AtLeast0 = 10.0
  fisher_rows: ranges.Count = 5000
  fisher_chunk: ranges.Count = 100  # times in one backward pass
  fisher_dropout: ranges.Share = 0.1  # the share of times whose condition is null

  streams = ("x", "a", "all")
  terms = ("x", "u")
  needs = ("c", "concept")

  def prepare(self, apply, params, process, data, rng):
    kind = {"rows": self.fisher_rows, "chunk": self.fisher_chunk, "c_dropout": self.fisher_dropout}
    information = importance.fisher(apply, params, process, data["all"], rng, **kind)
    return {"fisher": information, "origin": jax.tree.map(jnp.asarray, params)}

  def draw(self, process, batch, rng, extras, step):
    k_u, k_rows = jax.random.split(rng)
    u = jax.random.uniform(k_u, batch["a"].image.shape, minval=-1.0)
    forget = batch["a"]._replace(image=u)
    draws = methods.draw_two(process, batch["x"], forget, k_rows, self.c_dropout)
    return draws | {"t_a": draws["t"]}

  def penalty(self, params, extras):
    distance = jax.tree.map(
      lambda f, p, p0: jnp.sum(f * (p - p0) ** 2), extras["fisher"], params, extras["origin"]
    )
    return self.lam * sum(jax.tree.leaves(distance))
