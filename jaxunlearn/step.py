"""One optimisation step: the draws, the K gradients of the whole batch, one update.

Three jitted programs, dispatched from the host, since a method may know from its draws, before any
forward pass, that a micro-batch does not need all K gradients: each pattern of needed terms is a
program of its own. (One program with `lax.cond` and a `lax.scan` over micro-batches would do as
well on an accelerator; on CPU, XLA runs convolutions inside control flow ten times slower.)
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import methods, sharding
from jaxunlearn.checkpoint import State

if TYPE_CHECKING:
  from jaxunlearn.train import Setup

Tree = Any


class Gradients:
  """(params, draws, extras) -> the K gradients of the whole batch, and metrics.

  Micro-batches are contiguous rows of the draws, one after the other, averaged per term.
  """

  def __init__(self, setup: "Setup"):
    self._setup = setup
    self._count = setup.config.train.micro_batches
    self._always = type(setup.method).needed is methods.Objective.needed
    self._split = jax.jit(self._split_rows)
    self._add = jax.jit(self._add_rows, static_argnames="needed", donate_argnames="total")

  def __call__(self, params: Tree, draws: Any, extras: Tree) -> tuple[tuple[Tree, ...], Tree]:
    parts, flags = self._split(draws)
    total: Any = None if self._count == 1 else self._zeros(params, parts[0], extras)
    for rows, needed in zip(parts, self._patterns(flags), strict=True):
      total = self._add(total, params, rows, extras, needed=needed)
    return total

  def lower(self, params: Tree, draws: Any, extras: Tree) -> Any:
    """The program of one micro-batch with every term, lowered, for its cost."""
    rows = jax.eval_shape(self._split, draws)[0][0]
    return self._add.lower(None, params, rows, extras, needed=self._all)

  @property
  def _all(self) -> tuple[bool, ...]:
    return (True,) * len(self._setup.method.terms)

  def _patterns(self, flags: jax.Array) -> list[tuple[bool, ...]]:
    """Which terms each micro-batch needs; read from the device only where it depends on it."""
    if self._always:
      return [self._all] * self._count
    return [tuple(row) for row in np.asarray(flags, bool).tolist()]

  def _split_rows(self, draws: Any) -> tuple[list[Any], jax.Array]:
    setup = self._setup
    where = sharding.batch_sharding(setup.mesh)
    size = len(jax.tree.leaves(draws)[0]) // self._count
    parts = [
      jax.lax.with_sharding_constraint(
        jax.tree.map(lambda a, i=i: a[i * size : (i + 1) * size], draws), where
      )
      for i in range(self._count)
    ]
    flags = [jnp.stack([*map(jnp.asarray, setup.method.needed(setup.process, p))]) for p in parts]
    return parts, jnp.stack(flags)

  def _add_rows(
    self, total: Tree, params: Tree, rows: Any, extras: Tree, *, needed: tuple[bool, ...]
  ) -> Tree:
    setup = self._setup
    grads, metrics = methods.term_grads(
      setup.method, setup.net.apply, params, setup.process, rows, extras, needed
    )
    where = sharding.state_sharding(setup.mesh, params)
    grads = tuple(jax.lax.with_sharding_constraint(g, where) for g in grads)
    mean = jax.tree.map(lambda a: a / self._count, (grads, metrics))
    return mean if total is None else jax.tree.map(jnp.add, total, mean)

  def _zeros(self, params: Tree, rows: Any, extras: Tree) -> Tree:
    add = functools.partial(self._add, needed=self._all)
    shapes = jax.eval_shape(add, None, params, rows, extras)
    make = jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    grads, metrics = make()
    where = sharding.state_sharding(self._setup.mesh, params)
    grads = tuple(jax.tree.map(jax.device_put, g, where) for g in grads)
    return grads, jax.device_put(metrics, sharding.replicated(self._setup.mesh))


def make_update(setup: "Setup", state: State) -> Callable[..., tuple[State, Tree]]:
  """The step (state, batch) -> (state, metrics); the state is donated, its layout kept."""
  config, gradients = setup.config, Gradients(setup)
  shardings = jax.tree.map(lambda a: a.sharding, state)

  @jax.jit
  def draw(step: jax.Array, batch: methods.Batch, extras: Tree) -> Any:
    rng = jax.random.fold_in(jax.random.key(config.seed), step)
    return setup.method.draw(setup.process, batch, rng, extras)

  @functools.partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated(setup.mesh)),
  )
  def apply(state: State, grads: tuple[Tree, ...], metrics: Tree) -> tuple[State, Tree]:
    direction, combined = setup.method.combine(grads, state.extras)
    updates, opt = setup.tx.update(direction, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.ema:
      decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
      ema = optax.incremental_update(params, ema, 1 - decay)
    metrics |= combined | {"grad_norm": optax.tree.norm(direction)}
    return State(state.step + 1, params, ema, opt, state.extras), metrics

  def update(state: State, batch: methods.Batch) -> tuple[State, Tree]:
    draws = draw(state.step, batch, state.extras)
    return apply(state, *gradients(state.params, draws, state.extras))

  return update
