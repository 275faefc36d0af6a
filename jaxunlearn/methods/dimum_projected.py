"""DiMUM off the space of what is kept: no step that retain gradients could take back.

    B = an orthonormal basis of the retain loss's gradients at the start, one a batch
    g = grad L_r + lam (1 - B B^T) grad L_m

L_r and L_m are DiMUM's. An attack that trains on what is kept moves along such gradients first. To
first order it does not undo what is memorised at a right angle to them. Gradient projection memory
(Saha et al., ICLR 2021) keeps tasks apart in this way, and Hoang et al. (WACV 2024) unlearn so;
both project layer by layer, on spaces of the layers' inputs. Pixel sums.

Deviations: this is no method of a paper. The space is that of whole gradients.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import methods
from jaxunlearn.inputs import ranges
from jaxunlearn.methods import dimum, importance


@dataclasses.dataclass(frozen=True)
class Method(dimum.Method):
  batches: ranges.Count = 8  # behind B, of which each is as large as the parameters
  batch: ranges.Count = 128  # records in each

  def prepare(self, apply, params, process, data, rng):
    kind = {"rows": self.batches * self.batch, "batch": self.batch, "w": 0.0, "clip": None}
    grads = importance.batch_gradients(apply, params, process, data["x"], rng, **kind)
    basis = jax.tree.map(lambda leaf: jnp.zeros((self.batches, *leaf.shape)), params)
    for i, grad in enumerate(grads):
      rest = off(off(grad, basis), basis)  # twice: once leaves rounding errors
      basis = jax.tree.map(lambda b, one, i=i: b.at[i].set(one), basis, _unit(rest, grad))
    return {"basis": basis}

  def combine(self, grads, extras):
    g_x, g_alt = grads
    return methods.weighted((g_x, off(g_alt, extras["basis"])), (1.0, self.lam)), {}


def off(grad, basis):
  """The part of a tree at a right angle to an orthonormal basis, [n, *shape] of each leaf."""
  shares = jax.tree.map(lambda b, g: jnp.tensordot(b, g, g.ndim), basis, grad)
  total = jax.tree.reduce(jnp.add, shares)  # of the whole tree: [n]
  return jax.tree.map(lambda b, g: g - jnp.tensordot(total, b, 1), basis, grad)


def _unit(rest, grad):
  """`rest` at length 1; 0 where it is what rounding left of `grad`."""
  length, whole = optax.tree.norm(rest), optax.tree.norm(grad)
  scale = jnp.where(length > 1e-4 * whole, 1 / length, 0)
  return jax.tree.map(lambda leaf: scale * leaf, rest)
