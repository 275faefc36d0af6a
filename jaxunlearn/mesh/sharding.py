"""The mesh and the partition rules: the only file that says 'mesh'.

Two axes. The batch lies over both, in the order (fsdp, data): the other order is one that XLA has
been seen to return wrong gradients for. Parameters and optimiser state are split over `fsdp` along
their largest dimension that divides; models know nothing of it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp")
BATCH_AXES = ("fsdp", "data")
MIN_SIZE = 2**10  # smaller leaves are cheaper to repeat than to gather


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of every device (of `devices`), or of the first data x fsdp; -1 stands for the rest.

  Raises:
    ValueError: the shape needs more devices than there are, or does not divide them.
  """
  devices = jax.devices() if devices is None else list(devices)
  shape = {"data": data, "fsdp": fsdp}
  if list(shape.values()).count(-1) > 1 or any(v < 1 and v != -1 for v in shape.values()):
    raise ValueError(
      f"mesh {shape}; use axes of at least 1, or one axis of -1 for the devices that are left"
    )
  known = math.prod(v for v in shape.values() if v != -1)
  if known > len(devices) or (-1 in shape.values() and len(devices) % known):
    raise ValueError(
      f"mesh data={data} fsdp={fsdp} does not fit {len(devices)} devices; "
      "use axes whose product is at most that, or divides it where one axis is -1"
    )
  shape = {axis: len(devices) // known if v == -1 else v for axis, v in shape.items()}
  count = math.prod(shape.values())
  return jax.make_mesh(
    tuple(shape.values()),
    tuple(shape),
    axis_types=(AxisType.Auto,) * len(shape),
    devices=devices[:count],
  )


def check_batch(batch: int, micro_batches: int, mesh: Mesh) -> None:
  """Raises ValueError unless every micro-batch divides over the mesh."""
  unit = micro_batches * mesh.size
  if batch % unit or batch < unit:
    raise ValueError(
      f"batch {batch} does not divide over {mesh.size} devices x {micro_batches} micro-batches; "
      f"use a multiple of {unit}"
    )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Rows over every device; `axis` is where the batch axis stands."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def state_sharding(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
  """A NamedSharding per leaf of `tree` (arrays or their shapes): parameters, EMA, optimiser."""
  return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf, mesh.shape["fsdp"])), tree)


def shaped(mesh: Mesh, tree: Any, where: Any = None) -> Any:
  """The shapes of `tree` laid out as `where`, or as `state_sharding`: what a restore fills.

  `where` is one layout for all leaves, or a tree of them.
  """
  struct = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
  layout = where or state_sharding(mesh, tree)
  if isinstance(layout, NamedSharding):
    layout = jax.tree.map(lambda _: layout, tree)
  return jax.tree.map(struct, tree, layout)


def put(tree: Any, sharding: Any) -> Any:
  """Host arrays as global arrays; `sharding` is one for all leaves or a tree of them.

  Every process holds the whole host array and gives its devices their part of it.
  """
  if isinstance(sharding, NamedSharding):
    sharding = jax.tree.map(lambda _: sharding, tree)

  def put_leaf(leaf: Any, where: NamedSharding) -> jax.Array:
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

  return jax.tree.map(put_leaf, tree, sharding)


@dataclasses.dataclass(frozen=True)
class Spread:
  """(eps_fn, x_t, t, c) -> eps, the rows over the devices of a mesh where they divide."""

  mesh: Mesh

  def __call__(self, eps_fn: Any, x_t: jax.Array, t: jax.Array, c: Any = None) -> jax.Array:
    return eps_fn(*map(self.rows, (x_t, t)), None if c is None else jax.tree.map(self.rows, c))

  def rows(self, a: jax.Array) -> jax.Array:
    if len(a) % self.mesh.size:
      return a
    return jax.lax.with_sharding_constraint(a, batch_sharding(self.mesh))


def spread(eps_fn: Any, mesh: Mesh) -> Any:
  """The same noise predictor, a pytree, that evaluates its rows on all devices of the mesh.

  On a mesh of several processes it is as it was: each measures for itself.
  """
  alone = mesh.size == 1 or mesh.is_multi_process
  return eps_fn if alone else jax.tree_util.Partial(Spread(mesh), eps_fn)


def unspread(eps_fn: Any) -> Any:
  """The noise predictor as it was before `spread`."""
  return eps_fn.args[0] if isinstance(getattr(eps_fn, "func", None), Spread) else eps_fn


def over_devices(eps_fn: Any) -> Any:
  """`spread` over all devices of this process; each gets the parameters."""
  return spread(everywhere(eps_fn), make_mesh(devices=jax.local_devices()))


def everywhere(tree: Any) -> Any:
  """The tree on each device of this process, for rows that `beside` splits."""
  return jax.device_put(tree, replicated(make_mesh(devices=jax.local_devices())))


def beside(tree: Any, rows: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
  """The rows over the devices of the mesh on which `tree` lies, where they divide.

  Else, and where the devices have sources of their own, they are as they were.
  """
  leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
  places = [leaf.sharding for leaf in leaves if isinstance(leaf.sharding, NamedSharding)]
  mesh = places[0].mesh if places else None
  if not isinstance(mesh, Mesh) or mesh.axis_names != MESH_AXES:
    return rows
  if mesh.is_multi_process or len(rows) % mesh.size:
    return rows
  return put(rows, batch_sharding(mesh))


@functools.lru_cache
def local_rows(where: NamedSharding, n: int) -> np.ndarray:
  """Which of n rows the devices of this process hold under `where`, in order."""
  places = where.addressable_devices_indices_map((n,)).values()
  return np.unique(np.concatenate([np.arange(n)[place] for place in places]))


def put_rows(where: NamedSharding, tree: Any, n: int) -> Any:
  """n global rows of which every process gives its `local_rows`: the leaves of `tree`."""
  rows = local_rows(where, n)

  def put_leaf(leaf: np.ndarray) -> jax.Array:
    mine = lambda index: leaf[np.searchsorted(rows, np.arange(n)[index[0]])]
    return jax.make_array_from_callback((n, *leaf.shape[1:]), where, mine)

  return jax.tree.map(put_leaf, tree)


def put_sources(mesh: Mesh, tree: Any, source: int = -1) -> Any:
  """Stacked sources over an axis of their own: every leaf of `tree` leads with n of them."""
  return put(tree, source_sharding(mesh, len(jax.tree.leaves(tree)[0]), source))


def source_sharding(mesh: Mesh, n: int, source: int = -1) -> NamedSharding:
  """n stacked sources over the devices of the mesh, in as many groups as divide both.

  What sums over sources is then summed once over the groups. A group is a mesh of `data` and
  `fsdp` again, of as much of the latter as divides it.

  Args:
    source: a number that the groups have to divide as well; -1 for none.

  Raises:
    ValueError: `source` is 0, or less than -1.
  """
  if source < 1 and source != -1:
    raise ValueError(f"sources.mesh {source}; use at least 1, or -1 for as many groups as possible")
  count = math.gcd(n, mesh.size, 0 if source == -1 else source)
  fsdp = math.gcd(mesh.size // count, mesh.shape["fsdp"])
  groups = Mesh(mesh.devices.reshape(count, -1, fsdp), ("source", *MESH_AXES))
  return NamedSharding(groups, PartitionSpec("source"))


def stacked_sharding(where: NamedSharding, tree: Any) -> Any:
  """A NamedSharding per leaf of stacked states: a source to a group (`where`), split in it."""
  inside = state_sharding(where.mesh, jax.eval_shape(first_of, tree))
  over = lambda one: NamedSharding(where.mesh, PartitionSpec(*where.spec, *one.spec))
  return jax.tree.map(over, inside)


def first_of(stacked: Any) -> Any:
  """The first of stacked trees."""
  return jax.tree.map(lambda leaf: leaf[0], stacked)


def gather(tree: Any, layout: Any) -> Any:
  """Within `shard_map`: leaves laid out so, whole on each device."""

  def whole(leaf: jax.Array, where: NamedSharding) -> jax.Array:
    if "fsdp" not in where.spec:
      return leaf
    return jax.lax.all_gather(leaf, "fsdp", axis=where.spec.index("fsdp"), tiled=True)

  return jax.tree.map(whole, tree, layout)


def mean_scattered(tree: Any, layout: Any) -> Any:
  """Within `shard_map`: the mean over the devices of a group, of which each keeps its part."""

  def part(leaf: jax.Array, where: NamedSharding) -> jax.Array:
    if "fsdp" not in where.spec:
      return jax.lax.pmean(leaf, BATCH_AXES)
    axis = where.spec.index("fsdp")
    total = jax.lax.psum_scatter(leaf, "fsdp", scatter_dimension=axis, tiled=True)
    return jax.lax.pmean(total / where.mesh.shape["fsdp"], "data")

  return jax.tree.map(part, tree, layout)


def _spec(leaf: Any, fsdp: int) -> PartitionSpec:
  axes = [i for i, size in enumerate(leaf.shape) if size % fsdp == 0 and size >= fsdp]
  if fsdp == 1 or math.prod(leaf.shape) < MIN_SIZE or not axes:
    return PartitionSpec()
  split = max(axes, key=lambda i: leaf.shape[i])
  return PartitionSpec(*("fsdp" if i == split else None for i in range(len(leaf.shape))))
