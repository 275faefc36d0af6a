"""One optimisation step: the draws, the K gradients of the whole batch, one update.

Jitted programs, dispatched from the host, since a method may know from its draws, before any
forward pass, that a micro-batch does not need all K gradients: each pattern of needed terms is a
program of its own. (One program with `lax.cond` and a `lax.scan` over micro-batches would do as
well on an accelerator; on CPU, XLA runs convolutions inside control flow ten times slower.)

They are compiled once for all runs of a process that agree in their `Program`: a table of many
short runs, like a grid of attacks, compiles little.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import adapters, methods
from jaxunlearn.build import Setup
from jaxunlearn.checkpoint import NOTHING, State
from jaxunlearn.compiled.flops import count as count_flops
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.mesh import sharding

Tree = Any
DROPOUT = "dropout_rows"  # among the draws: one seed a row, of its masks


@dataclasses.dataclass(frozen=True)
class Program:
  """What is compiled: all of a run that is neither data nor state."""

  predictor: adapters.Predictor
  method: methods.Objective
  process: Diffusion
  mesh: jax.sharding.Mesh
  micro_batches: int
  gather_once: bool
  ema: float
  ema_warmup: bool
  optimizer: str  # the fields that `tx` was made of
  tx: optax.GradientTransformation = dataclasses.field(compare=False)


def program(setup: Setup, frozen: Tree = NOTHING) -> Program:
  """That of a run; `frozen` is what its state has beside what it trains."""
  config = setup.config
  return Program(
    predictor=setup.predictor(frozen),
    method=setup.method,
    process=setup.process,
    mesh=setup.mesh,
    micro_batches=config.train.micro_batches,
    gather_once=config.train.gather_once and setup.mesh.shape["fsdp"] > 1,
    ema=config.ema,
    ema_warmup=config.ema_warmup,
    optimizer=f"{config.optimizer.to_json(sort_keys=True)} {config.train.steps}",
    tx=setup.tx,
  )


class Gradients:
  """(params, draws, extras, frozen) -> the K gradients of the whole batch, and metrics.

  Micro-batches are contiguous rows of the draws, one after the other, averaged per term. Each
  gathers the weights that `fsdp` splits, or all of them take those that were gathered once.
  """

  def __init__(self, program: Program):
    self._program = program
    self._always = type(program.method).needed is methods.Objective.needed

  def __call__(
    self, params: Tree, draws: Any, extras: Tree, frozen: Tree = NOTHING
  ) -> tuple[tuple[Tree, ...], Tree]:
    parts, flags = _split(self._program, draws)
    total: Any = None
    if self._program.micro_batches > 1:
      total = self._zeros(params, parts[0], extras, frozen)
    if self._program.gather_once:
      params, frozen = _gather(self._program, (params, frozen))
    for rows, needed in zip(parts, self._patterns(flags), strict=True):
      total = _add(self._program, total, params, rows, extras, frozen, needed=needed)
    return total

  def lower(
    self, params: Tree, rows: Any, extras: Tree, frozen: Tree = NOTHING
  ) -> jax.stages.Lowered:
    """The program of one micro-batch's rows with every term, lowered; arrays or their shapes."""
    many = self._program.micro_batches > 1
    total = self._sums(params, rows, extras, frozen) if many else None
    return _add.lower(self._program, total, params, rows, extras, frozen, needed=self._all)

  @property
  def _all(self) -> tuple[bool, ...]:
    return (True,) * len(self._program.method.terms)

  def _patterns(self, flags: jax.Array) -> list[tuple[bool, ...]]:
    """Which terms each micro-batch needs; read from the device only where it depends on it."""
    if self._always:
      return [self._all] * self._program.micro_batches
    return [tuple(row) for row in np.asarray(flags, bool).tolist()]

  def _zeros(self, params: Tree, rows: Any, extras: Tree, frozen: Tree) -> Tree:
    sums = self._sums(params, rows, extras, frozen)
    where = jax.tree.map(lambda s: s.sharding, sums)
    zeros = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
    return jax.tree.map(jax.device_put, jax.jit(zeros)(), where)

  def _sums(self, params: Tree, rows: Any, extras: Tree, frozen: Tree) -> Tree:
    """The shapes and layouts of what micro-batches are added to."""
    add = functools.partial(_add, self._program, needed=self._all)
    grads, metrics = jax.eval_shape(add, None, params, rows, extras, frozen)
    mesh = self._program.mesh
    return sharding.shaped(mesh, grads), sharding.shaped(mesh, metrics, sharding.replicated(mesh))


def make_update(setup: Setup, state: State) -> Callable[..., tuple[State, Tree]]:
  """The step (state, batch) -> (state, metrics); the state is donated, its layout kept."""
  program_, seed = program(setup, state.frozen), setup.config.seed
  gradients, apply = Gradients(program_), _applier_of(program_, state)

  def update(state: State, batch: methods.Batch) -> tuple[State, Tree]:
    draws = draw(program_, seed, state.step, batch, state.extras)
    return apply(state, *gradients(state.params, draws, state.extras, state.frozen))

  return update


def flops(setup: Setup, state: State, batch: methods.Batch) -> float:
  """FLOPs of a step's gradients with every term, on all devices: convolutions and products."""
  program_ = program(setup, state.frozen)
  first = lambda state, batch: _split(program_, draw(program_, 0, state.step, batch, state.extras))
  rows = jax.eval_shape(first, state, batch)[0][0]
  shapes = jax.eval_shape(lambda *trees: trees, state.params, rows, state.extras, state.frozen)
  leaves, structure = jax.tree.flatten(shapes)
  return _flops(program_, structure, tuple(leaves))


@functools.cache
def _flops(program: Program, structure: Any, shapes: tuple[Any, ...]) -> float:
  every = (True,) * len(program.method.terms)
  add = functools.partial(_add, program, None, needed=every)
  return program.micro_batches * count_flops(add, *structure.unflatten(shapes))


def compile_programs(
  setup: Setup, state: State, batch: methods.Batch
) -> Iterator[tuple[str, jax.stages.Compiled]]:
  """A step's programs in order, each compiled for what the last one gives; `gradients` runs once a
  micro-batch, with every term. The arguments are arrays or their shapes and layouts.
  """
  program_ = program(setup, state.frozen)
  drawn = draw.lower(program_, setup.config.seed, state.step, batch, state.extras).compile()
  yield "draw", drawn
  split = _split.lower(program_, _given(drawn)).compile()
  yield "split", split
  rows, weights = _given(split)[0][0], (state.params, state.frozen)
  if program_.gather_once:
    gathered = _gather.lower(program_, weights).compile()
    yield "gather", gathered
    weights = _given(gathered)
  lowered = Gradients(program_).lower(weights[0], rows, state.extras, weights[1])
  gradients = lowered.compile()
  yield "gradients", gradients
  yield "update", _applier_of(program_, state).lower(state, *_given(gradients)).compile()


def _given(compiled: jax.stages.Compiled) -> Tree:
  """The shapes and layouts of a program's results."""
  struct = lambda info, where: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=where)
  return jax.tree.map(struct, compiled.out_info, compiled.output_shardings)


@functools.partial(jax.jit, static_argnums=0)
def draw(
  program: Program, seed: int | jax.Array, step: jax.Array, batch: methods.Batch, extras: Tree
) -> Any:
  draws = draw_rows(program, seed, step, batch, extras)
  return jax.lax.with_sharding_constraint(draws, sharding.batch_sharding(program.mesh))


def draw_rows(
  program: Program, seed: int | jax.Array, step: jax.Array, batch: methods.Batch, extras: Tree
) -> Any:
  """All that a step draws at random for the rows of a batch."""
  rng = jax.random.fold_in(jax.random.key(seed), step)
  draws = program.method.draw(program.process, batch, rng, extras, step)
  if getattr(program.predictor.net, "dropout", 0):
    k_dropout = jax.random.fold_in(rng, 2**32 - 1)  # methods fold in small numbers
    count = len(jax.tree.leaves(draws)[0])
    draws |= {DROPOUT: jax.random.bits(k_dropout, (count,), jnp.uint32)}
  return draws


@functools.partial(jax.jit, static_argnums=0)
def _split(program: Program, draws: Any) -> tuple[list[Any], jax.Array]:
  where = sharding.batch_sharding(program.mesh)
  size = len(jax.tree.leaves(draws)[0]) // program.micro_batches
  parts = [
    jax.lax.with_sharding_constraint(
      jax.tree.map(lambda a, i=i: a[i * size : (i + 1) * size], draws), where
    )
    for i in range(program.micro_batches)
  ]
  needed = lambda part: program.method.needed(program.process, part)
  flags = jnp.stack([jnp.stack([*map(jnp.asarray, needed(part))]) for part in parts])
  return parts, jax.lax.with_sharding_constraint(flags, sharding.replicated(program.mesh))


@functools.partial(jax.jit, static_argnums=0)
def _gather(program: Program, weights: Tree) -> Tree:
  """All of them on each device."""
  return jax.lax.with_sharding_constraint(weights, sharding.replicated(program.mesh))


@functools.partial(jax.jit, static_argnums=0, static_argnames="needed", donate_argnums=1)
def _add(
  program: Program,
  total: Tree,
  params: Tree,
  rows: Any,
  extras: Tree,
  frozen: Tree,
  *,
  needed: tuple[bool, ...],
) -> Tree:
  """The gradients of one micro-batch, added to those so far."""
  apply, draws = with_dropout(program.predictor.bound(frozen), rows)
  grads, metrics = program.method.gradients(apply, params, program.process, draws, extras, needed)
  where = sharding.state_sharding(program.mesh, params)
  grads = tuple(jax.lax.with_sharding_constraint(g, where) for g in grads)
  mean = jax.tree.map(lambda a: a / program.micro_batches, (grads, metrics))
  return mean if total is None else jax.tree.map(jnp.add, total, mean)


def with_dropout(apply: Callable[..., Any], rows: Any) -> tuple[Callable[..., Any], Any]:
  """The network under the masks of those draws, and the draws as the method made them.

  Every pass of a step over a row, a target's too, has the same masks.
  """
  if DROPOUT not in rows:
    return apply, rows
  draws = {name: value for name, value in rows.items() if name != DROPOUT}
  return functools.partial(apply, rows=rows[DROPOUT]), draws


def _applier_of(program: Program, state: State) -> jax.stages.Wrapped:
  leaves, structure = jax.tree.flatten(jax.tree.map(lambda a: a.sharding, state))
  return _applier(program, structure, tuple(leaves))


@functools.cache
def _applier(program: Program, structure: Any, leaves: tuple[Any, ...]) -> jax.stages.Wrapped:
  """`apply_update`, compiled for a state of that layout."""
  where = (structure.unflatten(leaves), sharding.replicated(program.mesh))
  apply = functools.partial(apply_update, program)
  return jax.jit(apply, donate_argnums=0, out_shardings=where)


def apply_update(
  program: Program, state: State, grads: tuple[Tree, ...], metrics: Tree
) -> tuple[State, Tree]:
  method = program.method
  direction, combined = methods.direction(method, state.params, grads, state.extras)
  updates, opt = program.tx.update(direction, state.opt, state.params)
  params = optax.apply_updates(state.params, updates)
  params, extras = program.method.settle(params, state.extras, state.step)
  ema = state.ema
  if program.ema:
    warm = (1 + state.step) / (10 + state.step) if program.ema_warmup else 1.0
    decay = jnp.minimum(program.ema, warm)
    ema = optax.incremental_update(params, ema, 1 - decay)
  metrics |= combined | {"grad_norm": optax.tree.norm(direction)}
  return State(state.step + 1, params, ema, opt, extras, state.frozen), metrics
