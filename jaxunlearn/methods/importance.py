"""How much each parameter matters to some records: Fisher information, gradients, masks of both.

F_i = E_{(x, c)} [(d/d theta_i ||eps - eps_theta(x_t, t, c)||^2)^2],   t, eps once a record
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import methods
from jaxunlearn.diffusion import Diffusion

Tree = Any


def fisher(
  apply: Any, params: Tree, process: Diffusion, stream: methods.Whole, rng: jax.Array, rows: int
) -> Tree:
  """The diagonal of the empirical Fisher information over `rows` records, one gradient each."""
  total = jax.tree.map(jnp.zeros_like, params)
  picked = stream.pick(rows, 0)
  for i, row in enumerate(picked.chunks(1)):
    grad = gradient(apply, process, params, row, jax.random.fold_in(rng, i))
    total = jax.tree.map(lambda f, g: f + g**2, total, grad)
  return jax.tree.map(lambda f: f / len(picked.image), total)


def summed_gradient(
  apply: Any,
  params: Tree,
  process: Diffusion,
  stream: methods.Whole,
  rng: jax.Array,
  *,
  batch: int,
  rows: int,
  clip: float,
) -> Tree:
  """The sum over batches of the denoising gradient, each clipped to a global norm of `clip`."""
  total = jax.tree.map(jnp.zeros_like, params)
  for i, part in enumerate(stream.pick(rows, 0).chunks(batch)):
    grad = gradient(apply, process, params, part, jax.random.fold_in(rng, i))
    total = jax.tree.map(jnp.add, total, methods.clipped(grad, clip))
  return total


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(
  apply: Any, process: Diffusion, params: Tree, rows: methods.Rows, rng: jax.Array
) -> Tree:
  """The gradient of the denoising loss of those rows."""
  noise = methods.draw_noise(process, rows.image.shape, rng)
  x, c = jnp.asarray(rows.image), rows.c if rows.c is None else jnp.asarray(rows.c)
  loss = lambda p: methods.denoising_loss(functools.partial(apply, p), process, x, c, **noise)
  return jax.grad(loss)(params)


def largest(tree: Tree, share: float) -> Tree:
  """bool: that share of all entries of a tree together, the largest in absolute value."""
  values = np.concatenate([np.abs(np.asarray(leaf)).ravel() for leaf in jax.tree.leaves(tree)])
  chosen = np.zeros(len(values), bool)
  # By rank, not by a threshold: the many zeros of unused embeddings tie.
  chosen[np.argsort(-values, kind="stable")[: round(share * len(values))]] = True
  leaves, structure = jax.tree.flatten(tree)
  parts = np.split(chosen, np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
  shaped = [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
  return jax.tree.unflatten(structure, shaped)
