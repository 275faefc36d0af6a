"""DiMUM, sharpness-aware: memorise so that it holds all around (Foret et al., ICLR 2021).

    phi = theta + rho grad L_m(theta) / ||grad L_m(theta)||
    L = L_r(theta) + lam L_m(phi)

L_r and L_m are DiMUM's; phi is where, within rho of theta, L_m is largest, to first order. Its
gradient there is given to theta. A flat minimum is to resist relearning, whose steps lead away from
it (Fan et al., ICML 2025, who unlearn language models). Pixel sums.

Deviations: this is no method of a paper; Fan et al. have other losses than DiMUM's.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import methods
from jaxunlearn.inputs import ranges
from jaxunlearn.methods import dimum


@dataclasses.dataclass(frozen=True)
class Method(dimum.Method):
  rho: ranges.AtLeast0 = 0.05

  forwards = 3
  backwards = 3
  whole_batch = True

  def gradients(self, apply, params, process, draws, extras, needed=None):
    places = (params, self._sharpest(apply, params, process, draws))
    return methods.grads_at(self, apply, places, process, draws, extras)

  def _sharpest(self, apply, params, process, draws):
    """phi."""
    a, c, t, eps = (draws[name] for name in ("a", "c_a", "t_a", "eps_a"))
    bound = lambda p: functools.partial(apply, p)
    slope = jax.grad(lambda p: methods.denoising_loss(bound(p), process, a, c, t, eps))(params)
    tiny = jnp.finfo(jnp.float32).tiny
    scale = self.rho / jnp.maximum(optax.tree.norm(slope), tiny)
    return jax.tree.map(lambda p, g: p + scale * g, params, slope)
