"""Training objectives: one module a paper, each with a frozen dataclass `Method`.

A method says what one optimisation step minimises, in four parts of which most need two:

    prepare   what the paper computes once, before the first step      -> extras
    draw      every random number of one step, for the whole batch      -> draws
    losses    the K loss terms on (a micro-batch of) those draws        -> losses, metrics
    combine   one update direction from the K whole-batch gradients     -> direction, metrics

Since all randomness is in `draw`, a step gives the same gradients however it is cut into
micro-batches or laid out over devices, and an independent implementation can be fed the same draws.
To add a method write one file here; `tests/methods_test.py` tests it because it exists.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion, EpsFn

Array = jax.Array
Tree = Any  # a nested dict of arrays: parameters, their gradients
Metrics = dict[str, Array]


class Rows(NamedTuple):
  """A batch of one stream: images in [-1, 1], their conditions if any, their record numbers."""

  image: Array | np.ndarray  # [B, H, W, C] float32
  c: Array | np.ndarray | None  # [B] int32, or None for an unconditional model
  index: Array | np.ndarray  # [B] int32, the record's place in the data set


Batch = Mapping[str, Rows]  # stream name -> rows; the names are the papers' (x kept, a to unlearn)


@dataclasses.dataclass(frozen=True)
class Objective:
  """The contract; the fields of a subclass are its paper's hyper-parameters."""

  streams: ClassVar[tuple[str, ...]] = ("x",)  # the streams it reads, first the one it keeps
  terms: ClassVar[tuple[str, ...]] = ("x",)  # the names of the K losses
  # Forward passes over a batch, and backward passes at most, of one step.
  forwards: ClassVar[int] = 1
  backwards: ClassVar[int] = 1
  # False: each term has a forward pass of its own, so each is differentiated on its own.
  shared_forward: ClassVar[bool] = True

  def prepare(
    self,
    apply: Callable[..., Array],
    params: Tree,
    process: Diffusion,
    data: Mapping[str, Rows],
    rng: Array,
  ) -> Tree:
    """Computed once from the starting parameters and whole streams; kept in every checkpoint."""
    del apply, params, process, data, rng
    return {}

  def draw(self, process: Diffusion, batch: Batch, rng: Array, extras: Tree) -> Any:
    """The random numbers of a step; every leaf leads with the batch axis."""
    raise NotImplementedError

  def losses(
    self, eps_fn: EpsFn, process: Diffusion, draws: Any, extras: Tree
  ) -> tuple[tuple[Array, ...], Metrics]:
    """The K scalar loss terms, each a mean over its rows of sums over pixels, and what to log."""
    raise NotImplementedError

  def needed(self, process: Diffusion, draws: Any) -> tuple[Array | bool, ...]:
    """Which of the K terms have a gradient on these draws; a term that has none costs nothing."""
    del process, draws
    return (True,) * len(self.terms)

  def combine(self, grads: tuple[Tree, ...], extras: Tree) -> tuple[Tree, Metrics]:
    """One update direction from the K gradients of the whole batch: their sum by default."""
    del extras
    return jax.tree.map(lambda *g: sum(g), *grads), {}


def names() -> list[str]:
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def make(name: str, **hparams: Any) -> Objective:
  """methods/siss.py is named 'siss'; its hparams are the fields of its `Method`."""
  errors.check_choice("method", name, names())
  module = importlib.import_module(f"{__name__}.{name}")
  return errors.build(module.Method, f"method {name}", hparams)


def term_grads(
  objective: Objective,
  apply: Callable[..., Array],
  params: Tree,
  process: Diffusion,
  draws: Any,
  extras: Tree,
) -> tuple[tuple[Tree, ...], Metrics]:
  """The gradient of each loss term on these draws, by as few passes as the method allows.

  Terms that share a forward pass are pulled back through it one by one, and a term that
  `needed` rules out is not pulled back at all.
  """

  def losses_fn(p: Tree) -> tuple[tuple[Array, ...], Metrics]:
    losses, metrics = objective.losses(functools.partial(apply, p), process, draws, extras)
    named = {f"loss_{name}": loss for name, loss in zip(objective.terms, losses, strict=True)}
    return losses, metrics | named

  if not objective.shared_forward:
    pick = lambda p, k: (lambda out: (out[0][k], out[1]))(losses_fn(p))
    grads = [jax.grad(pick, has_aux=True)(params, k) for k in range(len(objective.terms))]
    return tuple(g for g, _ in grads), grads[0][1]

  losses, pullback, metrics = jax.vjp(losses_fn, params, has_aux=True)
  zeros = jax.tree.map(jnp.zeros_like, params)
  ones = [
    tuple(jnp.asarray(i == k, v.dtype) for i, v in enumerate(losses)) for k in range(len(losses))
  ]
  grads = [
    pullback(one)[0]
    if need is True
    else jax.lax.cond(need, lambda one=one: pullback(one)[0], lambda: zeros)
    for one, need in zip(ones, objective.needed(process, draws), strict=True)
  ]
  return tuple(grads), metrics
