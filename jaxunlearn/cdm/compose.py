"""Composition: one noise predictor out of n, one for each source (Golatkar et al., 2024, eq. 5).

    eps_mix(x_t, t) = sum_i w_i(x_t, t) eps_i(x_t, t),   w_i = lam_i p_{i,t}(x_t) / p_t(x_t)

The same weights mix predictions of eps, of x0 and of v. They are a function of (x_t, t), hence
computed anew at every evaluation of a sampler. Under a condition c the prior lam_i is p(i | c), the
source's share of the records that have it (conditions.py). The modes, and how many networks each
evaluates:

    soft        w_i of the router                                                        n
    naive       w_i = 1/n: the geometric mean of the densities, up to a constant. It is the form
                that copy protection takes, but an ordinary sampler of it certifies no bound   n
    topk        the k largest w_i, to sum 1, those that are 0 left out: top-n is soft, and costs
                less where a condition names the source; top-1 erases the modes that sources share
                                                                                    k at most
    step        one source at random by its prior at each evaluation; tends to an average      1
    trajectory  one source by its prior for each row: a sampler of it draws from the mixture   1

Modes that need not all networks send each row only to those it needs: rows are sorted by source
and taken in blocks of one source, so that the cost grows with k and not with n.

On a mesh each group of devices evaluates the sources that lie on it (sharding.source_sharding), of
a sparse mode on the rows that take them, and the groups add up what they have: one sum of pictures,
and no parameter moves.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL, Diffusion, EpsFn, guidance
from jaxunlearn.diffusion.held import Held
from jaxunlearn.mesh import sharding

Tree = Any
MODES = ("soft", "naive", "topk", "step", "trajectory")
DENSE = ("soft", "naive")  # modes that evaluate every network
WEIGHED = ("soft", "topk")  # modes that ask the router


class Compartments(NamedTuple):
  """n sources: every leaf of `params` and `parts` leads with that axis."""

  names: tuple[str, ...]
  counts: tuple[int, ...]  # records of each: the priors are their shares
  params: Tree
  parts: Tree  # of the router
  told: Int[np.ndarray, "n ..."] | None = None  # records of each under each condition, if counted

  @property
  def prior(self) -> Float[np.ndarray, " n"]:
    """lam_i, float32."""
    counts = np.array(self.counts, np.float64)
    return (counts / counts.sum()).astype(np.float32)

  @property
  def prior_under(self) -> Float[np.ndarray, "... n"] | None:
    """p(i | c) of each condition, float32; lam_i where no source has it. None: not counted."""
    if self.told is None:
      return None
    counts = np.moveaxis(np.asarray(self.told, np.float64), 0, -1)
    total = counts.sum(-1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), self.prior).astype(np.float32)

  def only(self, names: Sequence[str]) -> "Compartments":
    """Those sources, as an access right may say; the priors follow (exact: w_i are masked).

    Raises:
      ValueError: no such source, or none.
    """
    for name in names:
      errors.check_choice("source", name, self.names)
    if not names:
      raise ValueError(f"a composition needs a source; name one or more of {', '.join(self.names)}")
    index = np.array([i for i, name in enumerate(self.names) if name in names])
    if len(index) == len(self.names):
      return self
    pick = lambda tree: jax.tree.map(lambda leaf: leaf[index], tree)
    params, groups = pick(self.params), _groups(self.params)
    if isinstance(groups, Mesh):
      where = sharding.source_sharding(groups, len(index), groups.shape["source"])
      params = jax.jit(lambda tree: tree, out_shardings=where)(params)
    return Compartments(
      tuple(self.names[i] for i in index),
      tuple(self.counts[i] for i in index),
      params,
      pick(self.parts),
      pick(self.told),
    )

  def without(self, names: Sequence[str]) -> "Compartments":
    """All but those sources: what is left after they are deleted."""
    for name in names:
      errors.check_choice("source", name, self.names)
    return self.only([name for name in self.names if name not in names])


@dataclasses.dataclass(frozen=True)
class Mode:
  """How sources are mixed."""

  name: str = "soft"
  k: int = 1  # networks of a row, where the name is topk
  over: str = "vmap"  # how all networks are evaluated: at once, or by a scan in the memory of one
  block: int = 8  # rows of one source evaluated together, where not all networks are
  seed: int = 0  # of the sources drawn at random
  rows: int = 0  # evaluated at once, where all networks are; 0: all

  def __post_init__(self) -> None:
    errors.check_choice("mode of composition", self.name, MODES)
    errors.check_choice("evaluation over sources", self.over, ("vmap", "scan"))
    if self.rows < 0:
      raise ValueError(f"rows {self.rows} of a composition; use 0, for all at once, or more")
    if self.k < 1 or self.block < 1:
      raise ValueError(f"k {self.k} and block {self.block} of a composition; use at least 1 each")

  def networks(self, n: int) -> int:
    """Evaluations of a network for each row."""
    return n if self.name in DENSE else min(self.k, n) if self.name == "topk" else 1


def compose(
  apply: Callable[..., Array],
  compartments: Compartments,
  router: Any,
  process: Diffusion,
  mode: Mode = Mode(),
  guidance: float = 0.0,
) -> EpsFn:
  """The noise predictor of those compartments, a pytree (`jax.tree_util.Partial`).

  Args:
    apply: (params, x_t, t, c) -> eps, of one source. Guidance is within each, before they mix.
    router: `logits(parts, process, x_t, t) -> [B, n]`, log p_{i,t}(x_t) up to a common constant.
  """
  apply, params = guided(apply, guidance), compartments.params
  weigh = log_weights(router, process, compartments)
  if mode.name == "naive":
    weigh = jax.tree_util.Partial(_even, jnp.zeros(len(compartments.names)))
  groups, log_prior = _groups(params), log_priors(compartments)
  fixed: tuple[Any, ...] = (apply, params, log_prior)
  mix = _sparse(mode, groups)
  if mode.name in DENSE:
    mix, fixed = _dense(mode, groups), (apply, params)
  every = getattr(router, "every", 1)
  if every > 1 and mode.name in WEIGHED:
    given = jax.tree_util.Partial(_with_weights, jax.tree_util.Partial(mix, *fixed))
    return Held(given, weigh, every)
  return jax.tree_util.Partial(mix, *fixed, weigh)


def _with_weights(mixed: Callable[..., Array], log_w: Array, *at: Any) -> Array:
  """The mixture under weights that are given."""
  return mixed(jax.tree_util.Partial(_given, log_w), *at)


def _given(log_w: Array, x_t: Array, t: Array, c: Any = None) -> Array:
  del x_t, t, c
  return log_w


def guided(apply: Callable[..., Array], w: float) -> Callable[..., Array]:
  """The same, a pytree, with (1 + w) eps_c - w eps_null for eps."""
  apply = as_pytree(apply)
  return jax.tree_util.Partial(_guided, apply, jnp.float32(w)) if w else apply


def _guided(
  apply: Callable[..., Array], w: Array, params: Tree, x_t: Array, t: Array, c: Any = None
) -> Array:
  return guidance.guided_by(jax.tree_util.Partial(apply, params), w, x_t, t, c)


def eps_all(apply: Callable[..., Array], compartments: Compartments) -> Callable[..., Array]:
  """(x_t, t, c) -> [n, B, H, W, C]: every source's prediction."""
  return jax.tree_util.Partial(_every, guided(apply, 0.0), compartments.params)


def _every(apply: Callable[..., Array], params: Tree, x_t: Array, t: Array, c: Any = None) -> Array:
  return jax.vmap(lambda p: apply(p, x_t, t, c))(params)


def log_weights(
  router: Any, process: Diffusion, compartments: Compartments
) -> Callable[..., Float[Array, "B n"]]:
  """(x_t, t, c) -> log w_i = log p(i | x_t, c), a pytree; of no c, log p(i | x_t)."""
  logits, log_prior = as_pytree(router.logits), log_priors(compartments)
  return jax.tree_util.Partial(_posterior(process), logits, compartments.parts, log_prior)


@functools.cache  # one function object for each: jit tells them apart by identity
def _posterior(process: Diffusion) -> Callable[..., Array]:
  def posterior(logits, parts: Tree, log_prior: Any, x_t: Array, t: Array, c: Any = None) -> Array:
    return jax.nn.log_softmax(logits(parts, process, x_t, t) + log_prior(x_t, c), axis=1)

  return posterior


def log_priors(compartments: Compartments) -> Callable[..., Float[Array, "B n"]]:
  """(x_t, c) -> log p(i | c), a pytree: -inf of a source that has no record of c."""
  under = compartments.prior_under
  table = None if under is None else jnp.log(under)
  return jax.tree_util.Partial(_log_prior, jnp.log(compartments.prior), table)


def _log_prior(log_lam: Array, table: Array | None, x_t: Array, c: Any = None) -> Array:
  free = jnp.broadcast_to(log_lam, (len(x_t), len(log_lam)))
  if table is None or c is None or not jnp.issubdtype(c.dtype, jnp.integer):
    return free
  columns = c.reshape(len(c), -1)
  empty = (columns == NULL).any(axis=1, keepdims=True)
  return jnp.where(empty, free, table[tuple(columns.T)])


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
  """A function that may be an argument of a jitted one."""
  partial = jax.tree_util.Partial
  return function if isinstance(function, partial) else partial(function)


def _even(zeros: Array, x_t: Array, t: Array, c: Any = None) -> Array:
  del t, c
  return jnp.broadcast_to(jax.nn.log_softmax(zeros), (len(x_t), len(zeros)))


def _at_once(apply: Callable[..., Array], params: Tree, w: Float[Array, "B n"], x_t, t, c) -> Array:
  return jnp.sum(w.T[..., None, None, None] * _every(apply, params, x_t, t, c), axis=0)


def _one_by_one(
  apply: Callable[..., Array], params: Tree, w: Float[Array, "B n"], x_t, t, c
) -> Array:
  def add(total: Array, source: tuple[Tree, Array]) -> tuple[Array, None]:
    p, share = source
    return total + share[:, None, None, None] * apply(p, x_t, t, c), None

  return jax.lax.scan(add, jnp.zeros_like(x_t), (params, w.T))[0]


_SUMS = {"vmap": _at_once, "scan": _one_by_one}


def _groups(params: Tree) -> Mesh | AbstractMesh | None:
  """The mesh whose `source` axis those stacked sources lie over; None where they lie otherwise."""
  where = getattr(jax.tree.leaves(params)[0], "sharding", None)
  if isinstance(where, NamedSharding) and tuple(where.spec)[:1] == ("source",):
    return where.mesh
  return None


@functools.cache
def _dense(mode: Mode, groups: Mesh | AbstractMesh | None) -> Callable[..., Array]:
  """The predictor of a mode that takes every network."""
  run = _sum_of_groups(groups, _SUMS[mode.over], "source")

  def predict(apply, params, weigh, x_t, t, c=None):
    w = jnp.exp(weigh(x_t, t, c))
    if not mode.rows:
      return run(apply, params, w, x_t, t, c)
    return in_blocks(mode.rows, lambda *rows: run(apply, params, *rows), w, x_t, t, c)

  return predict


def in_blocks(size: int, run: Callable[..., Array], *rows: Any) -> Array:
  """run(*rows) on so many of the rows after the other; the last block is filled up with others."""
  count = len(jax.tree.leaves(rows)[0])
  blocks = -(-count // size)
  split = lambda a: a[jnp.arange(blocks * size) % count].reshape(blocks, size, *a.shape[1:])
  out = jax.lax.map(lambda block: run(*block), jax.tree.map(split, rows))
  return out.reshape(blocks * size, *out.shape[2:])[:count]


@functools.cache
def _sparse(mode: Mode, groups: Mesh | AbstractMesh | None) -> Callable[..., Array]:
  """The predictor of a mode that takes few networks for a row: `choose` says which."""

  def run(apply, params, chosen, x_t, t, c):
    index, w = chosen
    if groups is not None:  # counted from the first source here: others are under 0, or too large
      index -= jax.lax.axis_index("source") * len(jax.tree.leaves(params)[0])
    return dispatch(apply, params, x_t, t, c, index, w, mode.block)

  def predict(apply, params, log_prior, weigh, x_t, t, c=None):
    chosen = choose(mode, weigh, log_prior, x_t, t, c)
    return _sum_of_groups(groups, run)(apply, params, chosen, x_t, t, c)

  return predict


def _sum_of_groups(
  groups: Mesh | AbstractMesh | None, run: Callable[..., Array], weights: str | None = None
) -> Callable[..., Array]:
  """run(apply, params, w, x_t, t, c) on the sources of each group of devices, added up.

  By `shard_map`: left to itself, XLA splits rows over the groups and sends the weights of every
  layer round. The second axis of w lies over the axis `weights` of the mesh, if any.
  """
  if groups is None:
    return run

  def summed(apply, params, w, x_t, t, c):
    devices = groups.size // groups.shape["source"]
    rows = sharding.BATCH_AXES if len(x_t) % devices == 0 else None
    row, source = PartitionSpec(rows), PartitionSpec("source")
    spread = jax.shard_map(
      lambda *arguments: jax.lax.psum(run(*arguments), "source"),
      mesh=groups,
      in_specs=(PartitionSpec(), source, PartitionSpec(rows, weights), row, row, row),
      out_specs=row,
      check_vma=False,
    )
    return spread(apply, params, w, x_t, t, c)

  return summed


def choose(
  mode: Mode, weigh: Any, log_prior: Any, x_t: Array, t: Array, c: Any = None
) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
  """The sources of each row, and their weights, of sum 1."""
  key, rows = jax.random.key(mode.seed), jnp.arange(len(x_t))
  if mode.name == "topk":
    log_w = weigh(x_t, t, c)
    n = log_w.shape[1]
    top, index = jax.lax.top_k(log_w, min(mode.k, n))
    return jnp.where(top > -jnp.inf, index, n), jax.nn.softmax(top)  # none where the weight is 0
  log_lam = log_prior(x_t, c)
  if mode.name == "trajectory":  # systematic: the sources' shares of the rows are their priors
    u = (rows + jax.random.uniform(key)) / len(rows)
    below = jnp.cumsum(jnp.exp(log_lam), axis=1)[:, :-1] <= u[:, None]
    index = jnp.sum(below, axis=1)
  else:
    fold = jax.vmap(lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n))
    index = jax.vmap(jax.random.categorical)(fold(rows, t.astype(int)), log_lam)
  return index[:, None], jnp.ones((len(x_t), 1))


def dispatch(
  apply: Callable[..., Array],
  params: Tree,
  x_t: Float[Array, "B H W C"],
  t: Array,
  c: Any,
  index: Int[Array, "B k"],
  weights: Float[Array, "B k"],
  block: int,
) -> Float[Array, "B H W C"]:
  """sum_j weights[b, j] eps_{index[b, j]}(x_t[b]), each network on the rows that need it alone.

  An index that is none of the n networks, below 0 too, adds nothing. A loop over blocks of `block`
  rows of one source; the last block of a source is filled up with rows that do not count.
  """
  n, k = len(jax.tree.leaves(params)[0]), index.shape[1]
  flat = index.reshape(-1)
  flat = jnp.where((flat >= 0) & (flat < n), flat, n)  # at the end of the order, and not counted
  order = jnp.argsort(flat, stable=True)
  counts = jnp.bincount(flat, length=n)
  blocks = -(-counts // block)
  last_block, last_row = jnp.cumsum(blocks), jnp.cumsum(counts)

  def add(j: Array, total: Array) -> Array:
    source = jnp.searchsorted(last_block, j, side="right")
    inside = (j - last_block[source] + blocks[source]) * block + jnp.arange(block)
    pick = order[jnp.minimum(last_row[source] - counts[source] + inside, len(flat) - 1)]
    row = pick // k
    own = jax.tree.map(lambda leaf: leaf[source], params)
    eps = apply(own, x_t[row], t[row], None if c is None else c[row])
    w = jnp.where(inside < counts[source], weights.reshape(-1)[pick], 0)
    return total.at[row].add(w[:, None, None, None] * eps)

  return jax.lax.fori_loop(0, last_block[-1], add, jnp.zeros_like(x_t))
