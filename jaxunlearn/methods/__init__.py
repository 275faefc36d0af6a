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
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion, EpsFn

Array = jax.Array
Tree = Any  # a nested dict of arrays: parameters, their gradients
Metrics = dict[str, Array]


class Rows(NamedTuple):
  """A batch of one stream: images in [-1, 1], their conditions if any, their record numbers."""

  image: Array | np.ndarray  # [B, H, W, C] float32
  c: Array | np.ndarray | None  # [B] int32, or None for an unconditional model
  index: Array | np.ndarray  # type: ignore[assignment]  # [B] int32, place in the data set

  def chunks(self, size: int = 256) -> Iterator["Rows"]:
    """All rows in order, `size` at a time."""
    for start in range(0, len(self.image), size):
      rows = slice(start, start + size)
      c = None if self.c is None else self.c[rows]
      yield Rows(self.image[rows], c, self.index[rows])


@runtime_checkable
class Whole(Protocol):
  """All records of a stream, read in chunks: a `data.Stream`, or `Rows` in memory."""

  def chunks(self, size: int = 256) -> Iterator[Rows]: ...


Batch = Mapping[str, Rows]  # stream name -> rows; the names are the papers' (x kept, a to unlearn)


@dataclasses.dataclass(frozen=True)
class Objective:
  """The contract; the fields of a subclass are its paper's hyper-parameters."""

  streams: ClassVar[tuple[str, ...]] = ("x",)  # the streams it reads, first the one it keeps
  terms: ClassVar[tuple[str, ...]] = ("x",)  # the names of the K losses
  # Forward passes over a batch, and backward passes at most, of one step.
  forwards: ClassVar[int] = 1
  backwards: ClassVar[int] = 1
  # False: term k has a forward pass of its own, the k-th call of eps_fn, and is always needed.
  shared_forward: ClassVar[bool] = True

  def prepare(
    self,
    apply: Callable[..., Array],
    params: Tree,
    process: Diffusion,
    data: Mapping[str, Whole],
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
  needed: Sequence[bool] | None = None,
) -> tuple[tuple[Tree, ...], Metrics]:
  """The gradient of each loss term on these draws, by as few passes as the method allows.

  Terms that share a forward pass are pulled back through it one by one; a term that is not
  `needed` (None: all are) is not pulled back, and its gradient is zero. Terms with a pass each
  read a copy of the parameters each, so that the one gradient of their sum holds theirs apart.
  The metric `passes` is the cost in forward passes; a backward pass counts as two.
  """

  def losses_fn(eps_fn: EpsFn) -> tuple[tuple[Array, ...], Metrics]:
    losses, metrics = objective.losses(eps_fn, process, draws, extras)
    named = {f"loss_{name}": loss for name, loss in zip(objective.terms, losses, strict=True)}
    return losses, metrics | named

  def total(copies: tuple[Tree, ...]) -> tuple[Array, Metrics]:
    copy = iter(copies)
    losses, metrics = losses_fn(lambda x_t, t, c=None: apply(next(copy), x_t, t, c))
    return sum(losses[1:], start=losses[0]), metrics

  needed = (True,) * len(objective.terms) if needed is None else needed
  if not objective.shared_forward:
    grads, metrics = jax.grad(total, has_aux=True)((params,) * len(objective.terms))
    return grads, metrics | {"passes": jnp.float32(objective.forwards + 2 * objective.backwards)}

  bound = lambda p: functools.partial(apply, p)
  losses, pullback, metrics = jax.vjp(lambda p: losses_fn(bound(p)), params, has_aux=True)
  ones = [
    tuple(jnp.asarray(i == k, v.dtype) for i, v in enumerate(losses)) for k in range(len(losses))
  ]
  grads = tuple(
    pullback(one)[0] if need else jax.tree.map(jnp.zeros_like, params)
    for need, one in zip(needed, ones, strict=True)
  )
  return grads, metrics | {"passes": jnp.float32(objective.forwards + 2 * sum(needed))}


def check(name: str, value: Any, ok: bool, rule: str) -> None:
  """Raises ValueError with the field, its value and the rule, unless `ok`."""
  if not ok:
    raise ValueError(f"{name} {value}: use {rule}")


def draw_noise(process: Diffusion, shape: tuple[int, ...], rng: Array) -> dict[str, Array]:
  """For each row of a shape [B, H, W, C] a time uniform over 0..T-1 and a standard normal noise."""
  k_t, k_eps = jax.random.split(rng)
  return {"t": process.sample_t(k_t, shape[0]), "eps": jax.random.normal(k_eps, shape)}


def draw_pairs(process: Diffusion, batch: Batch, rng: Array) -> dict[str, Any]:
  """The rows of streams x and a, paired; a pair shares one time and one noise."""
  x, a = batch["x"], batch["a"]
  pairs = {"x": x.image, "c_x": x.c, "a": a.image, "c_a": a.c}
  return pairs | draw_noise(process, x.image.shape, rng)


def squared_error(eps: Array, eps_hat: Array) -> Array:
  """||eps - eps_hat||^2 per row [B]: a sum over pixels, in float32."""
  return jnp.sum((eps - eps_hat.astype(jnp.float32)) ** 2, axis=(1, 2, 3))


def denoising_loss(
  eps_fn: EpsFn, process: Diffusion, x: Array, c: Array | None, t: Array, eps: Array
) -> Array:
  """L_X = E ||eps - eps_theta(x_t, t)||^2: the mean over rows of sums over pixels."""
  return jnp.mean(squared_error(eps, eps_fn(process.q_sample(x, t, eps), t, c)))


def check_forget_size(norm: float | None, ratio: float) -> None:
  """The two fields of `subtract_scaled`."""
  check("forget_norm", norm, norm is None or 0 < norm < math.inf, "more than 0, or None: relative")
  check("forget_ratio", ratio, 0 < ratio < math.inf, "more than 0")


def subtract_scaled(g_x: Tree, g_a: Tree, norm: float | None, ratio: float) -> tuple[Tree, Metrics]:
  """g_x - c g_a, with c such that ||c g_a|| is `norm`, or `ratio` ||g_x|| where norm is None.

  The norm is set at every step, up or down: no clip (Alberti et al., 2025). Where g_a is zero or
  not finite there is no such c: it is left out, and `forget_skipped` is 1.
  """
  norm_x, norm_a = optax.tree.norm(g_x), optax.tree.norm(g_a)
  c = (ratio * norm_x if norm is None else norm) / norm_a
  ok = jnp.isfinite(c) & jnp.isfinite(norm_a)
  direction = jax.tree.map(lambda x, a: jnp.where(ok, x - c * a, x), g_x, g_a)
  metrics = {
    "norm_x": norm_x,
    "norm_a": jnp.where(jnp.isfinite(norm_a), norm_a, 0),
    "forget_scale": jnp.where(ok, c, 0),
    "forget_skipped": 1 - ok.astype(jnp.float32),
  }
  return direction, metrics
