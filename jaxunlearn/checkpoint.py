"""Orbax checkpoints: save, resume, restore onto another mesh, start from another run.

Each checkpoint has up to five items: params, ema, opt, extras, and meta (JSON: the step, and of
every other item the types, shapes and a fingerprint). Attacks and evaluations read only the ones
they need. Saving is asynchronous and atomic; restoring checks the fingerprints, so that a damaged
checkpoint is reported and the one before it used.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from jaxunlearn import errors
from jaxunlearn.mesh import processes, sharding
from jaxunlearn.models.text_to_image import ENCODED_ONCE

Tree = Any
# Orbax warns of each directory that is only read; that is meant.
logging.get_absl_logger().addFilter(lambda record: "is read only=" not in str(record.msg))
ITEMS = ("params", "ema", "opt", "extras")
NOTHING: Tree = {}
# Replicas share the writing of a leaf where each has this much of it: to cut small ones up takes
# longer, in a program for each shape, than to write them.
SHARE_BYTES = 2**20


class State(NamedTuple):
  """All that a step changes, and what it leaves alone. `ema` is {} where the run keeps none."""

  step: jax.Array  # int32 []
  params: Tree
  ema: Tree
  opt: Tree
  extras: Tree
  frozen: Tree = NOTHING  # of config.trained; not saved, since it is that of init_from


def fingerprint(tree: Tree) -> int:
  """32 bits: changes with any bit of any leaf; the same on every mesh (integer sums commute)."""
  leaves = jax.tree.leaves(tree)
  # Leaf by leaf most share a program. Several processes would wait for one another at every leaf.
  sums = _all_mixed(leaves) if jax.process_count() > 1 else (int(_mixed(leaf)) for leaf in leaves)
  return sum((2 * i + 1) * int(one) for i, one in enumerate(sums)) % 2**32


@jax.jit
def _mixed(leaf: jax.Array) -> jax.Array:
  """uint32 [], of one leaf."""
  leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
  words = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize])
  place = jax.lax.iota(jnp.uint32, leaf.size).reshape(words.shape)
  mixed = (words.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
  return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)


_all_mixed = jax.jit(lambda leaves: [_mixed(leaf) for leaf in leaves])
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class WrongShape(ValueError):
  """A checkpoint of another model or method."""


class Damaged(RuntimeError):
  """A checkpoint whose bytes are not those that were saved."""


class Checkpoints:
  """The checkpoints of one run, at most `keep` of them."""

  def __init__(self, directory: pathlib.Path, keep: int = 2):
    self.directory = pathlib.Path(directory).absolute()
    self._frozen: int | None = None  # of what the run leaves alone: the same at every save
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
      ),
      item_handlers=_writers(),
    )

  def save(self, state: State) -> None:
    """Starts writing the state, once the one before is written (or OSError says that it is not)."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = _items(state)
    described = {
      name: {"shapes": _shapes(tree), "fingerprint": fingerprint(tree)}
      for name, tree in items.items()
    }
    if (frozen := self._of_frozen(state)) is not None:  # told by its bytes alone
      described["frozen"] = {"shapes": {}, "fingerprint": frozen}
    meta = {"step": step, "items": described, "digest": _digest(described)}
    saves = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    with errors.of_system(self.directory):
      self._manager.save(step, args=ocp.args.Composite(**saves, meta=ocp.args.JsonSave(meta)))

  def restore(self, target: State) -> State | None:
    """The newest good checkpoint, shaped and sharded as `target`; None where there is none.

    Raises:
      WrongShape: the checkpoint is of another model or method.
      Damaged: there are checkpoints and every one is damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        if jax.process_count() > 1:
          self._check_alone(step, target)
        items = _read(self._manager, step, _items(target), self._of_frozen(target))
        count = sharding.put(np.int32(step), target.step.sharding)
        return target._replace(step=count, **items)
      except Damaged as error:
        logging.error("%s; trying the one before it", error)
        self._set_aside(step)
    if steps:
      raise Damaged(
        f"every checkpoint under {self.directory} was damaged; they stand beside it in damaged/. "
        "Launch again to start from step 0"
      )
    return None

  def _check_alone(self, step: int, target: State) -> None:
    """Lets process 0 read it all: what failed in one of them would leave the others waiting.

    Raises:
      WrongShape, Damaged: in every process.
    """

    def damage() -> str:
      here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      put = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here)
      try:
        with _open(self.directory, alone=True) as manager:
          _read(manager, step, jax.tree.map(put, _items(target)))
      except Damaged as error:
        return str(error)
      return ""

    if found := processes.from_first(damage):
      raise Damaged(found)

  def _of_frozen(self, state: State) -> int | None:
    """The fingerprint of what the run leaves alone, computed once; None where that is nothing."""
    if self._frozen is None:
      self._frozen = _of_some({k: v for k, v in state.frozen.items() if k != ENCODED_ONCE})
    return self._frozen

  def wait(self) -> None:
    """Returns once every started save is on disk."""
    with errors.of_system(self.directory):
      self._manager.wait_until_finished()

  def close(self) -> None:
    with errors.of_system(self.directory):
      self._manager.close()

  def _set_aside(self, step: int) -> None:
    aside = self.directory.parent / "damaged" / str(step)

    def move() -> None:
      aside.parent.mkdir(exist_ok=True)
      shutil.rmtree(aside, ignore_errors=True)
      (self.directory / str(step)).rename(aside)

    processes.from_first(move)
    self._manager.reload()


def latest_step(run: pathlib.Path) -> int | None:
  """The step of the newest checkpoint of a run directory; None where it has none."""
  directory = pathlib.Path(run).absolute() / "checkpoints"
  if not directory.is_dir():
    return None
  with _open(directory) as manager:
    return manager.latest_step()


def read_params(
  run: pathlib.Path,
  target: Tree,
  item: str = "params",
  step: int | None = None,
  frozen: Tree = NOTHING,
) -> Tree:
  """The parameters (or `item="ema"`) of another run's checkpoint, on any mesh.

  Args:
    run: its working directory, which holds checkpoints/.
    target: arrays or ShapeDtypeStructs with the shardings to restore to (`sharding.shaped`).
    step: of the checkpoint; None takes the newest.
    frozen: what the run left alone, where it trained a part.

  Raises:
    ValueError: no checkpoint there, no such item, parameters of another shape, other frozen ones.
    Damaged: the checkpoint is damaged.
  """
  directory = pathlib.Path(run).absolute() / "checkpoints"
  step = latest_step(run) if step is None else step
  if step is None:
    raise ValueError(f"{directory} holds no checkpoint; give a run that has saved one")
  with _open(directory) as manager:
    return _read(manager, step, {item: target}, _of_some(frozen))[item]


def _writers() -> dict[str, ocp.CheckpointHandler]:
  leaves = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARE_BYTES)
  types = ocp.type_handlers.create_type_handler_registry((jax.Array, leaves))
  trees = {name: ocp.PyTreeCheckpointHandler(type_handler_registry=types) for name in ITEMS}
  return {**trees, "meta": ocp.JsonCheckpointHandler()}


def _open(directory: pathlib.Path, alone: bool = False) -> ocp.CheckpointManager:
  """To read from; `alone`: in this process, which waits for no other."""
  options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
  if alone:
    me = jax.process_index()
    options.multiprocessing_options = ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone{me}"
    )
  return ocp.CheckpointManager(directory, options=options)


def _of_some(tree: Tree) -> int | None:
  """The fingerprint of a tree; None for an empty one."""
  return fingerprint(tree) if jax.tree.leaves(tree) else None


def _items(state: State) -> dict[str, Tree]:
  return {k: getattr(state, k) for k in ITEMS if jax.tree.leaves(getattr(state, k))}


def _read(
  manager: ocp.CheckpointManager, step: int, targets: dict[str, Tree], frozen: int | None = None
) -> dict[str, Tree]:
  """Those items of one checkpoint, shaped and sharded as their targets, and checked.

  `frozen` is the fingerprint of what the run left alone.
  """
  path = pathlib.Path(manager.directory) / str(step)
  try:
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta["digest"] != _digest(meta["items"]):
      raise Damaged("the bytes of meta are not those that were saved")
    kept = meta["items"].get("frozen", {}).get("fingerprint")
    if None not in (frozen, kept) and kept != frozen:
      raise WrongShape(
        f"{path} trained a part of other weights than config.init_from has now; give those that it "
        "began with"
      )
    for name, target in targets.items():
      _check_shapes(f"{path}: {name}", target, meta["items"].get(name, {"shapes": {}})["shapes"])
    args = ocp.args.Composite(**{name: _restore_args(tree) for name, tree in targets.items()})
    restored = manager.restore(step, args=args)
    for name in targets:
      if fingerprint(restored[name]) != meta["items"][name]["fingerprint"]:
        raise Damaged(f"the bytes of {name} are not those that were saved")
    return {name: restored[name] for name in targets}
  except (WrongShape, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:  # what reading a damaged file raises is not documented
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    raise Damaged(f"checkpoint {path} is damaged ({reason})") from error


def _restore_args(tree: Tree) -> Any:
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
  return ocp.args.PyTreeRestore(
    shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes)
  )


def _shapes(tree: Tree) -> dict[str, str]:
  """{path of a leaf: its type and shape}."""
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  leaves = jax.tree.leaves_with_path(tree)
  return {name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _check_shapes(what: str, target: Tree, have: dict[str, str]) -> None:
  """Raises WrongShape where a saved leaf is missing, left over, or other than the target's."""
  want = _shapes(target)
  for leaf in sorted(want.keys() | have.keys()):
    if want.get(leaf) != have.get(leaf):
      raise WrongShape(
        f"{what} has {leaf} {have.get(leaf, 'nowhere')} and this config {want.get(leaf, 'nowhere')}"
        "; use the model and method it was saved with"
      )


def _digest(described: Any) -> str:
  return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
