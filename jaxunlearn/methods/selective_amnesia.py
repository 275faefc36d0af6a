"""Selective Amnesia: continual learning turned to forgetting (Heng and Soh, NeurIPS 2023).

    L = E_{u ~ U[-1,1]^d} ||eps - eps_theta(u_t, t, c_u)||^2      noise in place of the concept
      + E_{(x, c)} ||eps - eps_theta(x_t, t, c)||^2                generative replay
      + lam sum_i F_i (theta_i - theta0_i)^2

The stream `x` is what the pretrained model generated under the other conditions (`samples:FOLDER`),
and F, the diagonal Fisher information of theta0, is taken on it. Pixel sums.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import methods, ranges
from jaxunlearn.methods import importance


@dataclasses.dataclass(frozen=True)
class Method(methods.TwoSets):
  lam: ranges.AtLeast0 = 10.0
  fisher_rows: ranges.Count = 128

  terms = ("x", "u")
  needs = ("c", "concept")

  def prepare(self, apply, params, process, data, rng):
    information = importance.fisher(apply, params, process, data["x"], rng, self.fisher_rows)
    return {"fisher": information, "origin": jax.tree.map(jnp.asarray, params)}

  def draw(self, process, batch, rng, extras, step):
    k_u, k_rows = jax.random.split(rng)
    u = jax.random.uniform(k_u, batch["a"].image.shape, minval=-1.0)
    forget = batch["a"]._replace(image=u)
    return super().draw(process, {"x": batch["x"], "a": forget}, k_rows, extras, step)

  def penalty(self, params, extras):
    distance = jax.tree.map(
      lambda f, p, p0: jnp.sum(f * (p - p0) ** 2), extras["fisher"], params, extras["origin"]
    )
    return self.lam * sum(jax.tree.leaves(distance))
