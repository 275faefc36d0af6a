"""How much each parameter matters to some records: gradients, Fisher information, masks of both.

All are of the denoising loss l_t(x, c) = ||eps - eps_theta(x_t, t, c)||^2, a sum over pixels.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxunlearn import methods
from jaxunlearn.diffusion import Diffusion, guidance

Tree = Any


def fisher(
  apply: Any,
  params: Tree,
  process: Diffusion,
  stream: methods.Whole,
  rng: jax.Array,
  *,
  rows: int,
  chunk: int,
  c_dropout: float,
) -> Tree:
  """F_i = E_{(x, c)} [(sum_t d l_t(x, c) / d theta_i)^2], over `rows` records and all T times.

  The sum stands inside the square: each record has one gradient, of all its times, each with a
  noise of its own. `chunk` times ride in one backward pass. The condition is dropped at a share of
  the times.
  """
  total = jax.tree.map(jnp.zeros_like, params)
  picked = stream.pick(rows, 0)
  times = [jnp.arange(t, min(t + chunk, process.T)) for t in range(0, process.T, chunk)]
  add = lambda *trees: jax.tree.map(lambda *leaves: sum(leaves), *trees)
  bar = tqdm(picked.chunks(1), total=len(picked.image), desc="fisher", delay=5)
  for i, row in enumerate(bar):
    key = jax.random.fold_in(rng, i)
    of_times = functools.partial(_gradient_of_times, apply, process, c_dropout, params, row)
    grad = add(*(of_times(t, jax.random.fold_in(key, k)) for k, t in enumerate(times)))
    total = jax.tree.map(lambda f, g: f + g**2, total, grad)
  return jax.tree.map(lambda f: f / len(picked.image), total)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient_of_times(
  apply: Any,
  process: Diffusion,
  c_dropout: float,
  params: Tree,
  row: methods.Rows,
  t: jax.Array,
  rng: jax.Array,
) -> Tree:
  """The gradient of sum_t l_t of one record, by one pass over a batch of its times."""
  k_eps, k_c = jax.random.split(rng)
  x = jnp.repeat(jnp.asarray(row.image), len(t), axis=0)
  c = None if row.c is None else jnp.repeat(jnp.asarray(row.c), len(t), axis=0)
  c = methods.drop_conditions(c, c_dropout, k_c)
  eps = jax.random.normal(k_eps, x.shape)

  def loss(p: Tree) -> jax.Array:
    eps_hat = apply(p, process.q_sample(x, t, eps), t, c)
    return jnp.sum(methods.squared_error(eps, eps_hat))

  return jax.grad(loss)(params)


def batch_gradients(
  apply: Any,
  params: Tree,
  process: Diffusion,
  stream: methods.Whole,
  rng: jax.Array,
  *,
  rows: int,
  batch: int,
  w: float,
  clip: float | None,
) -> Iterator[Tree]:
  """The denoising gradients of `rows` records, a batch at a time, each clipped to a norm of `clip`.

  The loss is of the output guided by `w`; 0 takes the network's own.
  """
  picked = stream.pick(rows, 0)
  count = -(-len(picked.image) // batch)
  for i, part in enumerate(tqdm(picked.chunks(batch), total=count, desc="mask", delay=5)):
    grad = _gradient(apply, process, w, params, part, jax.random.fold_in(rng, i))
    yield grad if clip is None else methods.clipped(grad, clip)


def summed(grads: Iterator[Tree]) -> Tree:
  """Their sum, with signs."""
  return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), grads)


def mean_square(grads: Iterator[Tree]) -> Tree:
  """The mean of their squares, entry by entry."""
  total, count = None, 0
  for grad in grads:
    square = jax.tree.map(jnp.square, grad)
    total = square if total is None else jax.tree.map(jnp.add, total, square)
    count += 1
  return jax.tree.map(lambda leaf: leaf / count, total)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient(
  apply: Any, process: Diffusion, w: float, params: Tree, rows: methods.Rows, rng: jax.Array
) -> Tree:
  noise = methods.draw_noise(process, rows.image.shape, rng)
  x, c = jnp.asarray(rows.image), rows.c if rows.c is None else jnp.asarray(rows.c)

  def loss(p: Tree) -> jax.Array:
    eps_fn = guidance.guided(functools.partial(apply, p), w)
    return methods.denoising_loss(eps_fn, process, x, c, **noise)

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
