"""Orbax checkpoints: save, resume, restore onto another mesh, start from another run.

Each checkpoint has five items: params, ema, opt, extras, and meta (JSON: the step and a
fingerprint of every other item). Attacks and evaluations read only the ones they need. Saving is
asynchronous and atomic; restoring checks the fingerprints, so that a damaged checkpoint is
reported and the one before it used.
"""

import math
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from jaxunlearn import sharding

Tree = Any
ITEMS = ("params", "ema", "opt", "extras")


class State(NamedTuple):
  """All that a step changes. `ema` is {} where the run keeps none."""

  step: jax.Array  # int32 []
  params: Tree
  ema: Tree
  opt: Tree
  extras: Tree


@jax.jit
def fingerprint(tree: Tree) -> jax.Array:
  """uint32 []: changes with any bit of any leaf; the same on every mesh (integer sums commute)."""
  total = jnp.uint32(0)
  for i, leaf in enumerate(jax.tree.leaves(tree)):
    words = jax.lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize])
    place = jax.lax.iota(jnp.uint32, leaf.size).reshape(words.shape)
    mixed = (words.astype(jnp.uint32) ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    total += jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32) * jnp.uint32(2 * i + 1)
  return total


_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Checkpoints:
  """The checkpoints of one run, at most `keep` of them."""

  def __init__(self, directory: pathlib.Path, keep: int = 2):
    self.directory = pathlib.Path(directory).absolute()
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
      ),
    )

  def save(self, state: State) -> None:
    """Starts writing the state; returns once the arrays are copied."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = _items(state)
    meta = {"step": step, "fingerprint": {k: int(fingerprint(v)) for k, v in items.items()}}
    saves = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    self._manager.save(step, args=ocp.args.Composite(**saves, meta=ocp.args.JsonSave(meta)))

  def restore(self, target: State) -> State | None:
    """The newest good checkpoint, shaped and sharded as `target`; None where there is none.

    Raises:
      ValueError: the checkpoint is of another model or method.
      RuntimeError: there are checkpoints and every one is damaged.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      try:
        return self._read(step, target)
      except WrongShape:
        raise
      except Exception as error:  # noqa: BLE001  (what a damaged file raises is not documented)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logging.error("checkpoint %d is damaged (%s); trying the one before it", step, reason)
        self._set_aside(step)
    if steps:
      raise RuntimeError(
        f"every checkpoint under {self.directory} was damaged; they stand beside it in damaged/. "
        "Launch again to start from step 0"
      )
    return None

  def wait(self) -> None:
    """Returns once every started save is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  def _read(self, step: int, target: State) -> State:
    meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    items = _items(target)
    _check_shapes(items, self._manager.item_metadata(step), self.directory / str(step))
    restored = self._manager.restore(
      step, args=ocp.args.Composite(**{name: _restore_args(tree) for name, tree in items.items()})
    )
    for name, tree in items.items():
      if int(fingerprint(restored[name])) != meta["fingerprint"][name]:
        raise RuntimeError(f"the bytes of {name} are not those that were saved")
    count = sharding.put(np.int32(step), target.step.sharding)
    return target._replace(step=count, **{name: restored[name] for name in items})

  def _set_aside(self, step: int) -> None:
    aside = self.directory.parent / "damaged" / str(step)
    if jax.process_index() == 0:
      aside.parent.mkdir(exist_ok=True)
      shutil.rmtree(aside, ignore_errors=True)
      (self.directory / str(step)).rename(aside)
    self._manager.reload()


class WrongShape(ValueError):
  """A checkpoint of another model or method."""


def latest_step(run: pathlib.Path) -> int | None:
  """The step of the newest checkpoint of a run directory; None where it has none."""
  with ocp.CheckpointManager(pathlib.Path(run).absolute() / "checkpoints") as manager:
    return manager.latest_step()


def read_params(run: pathlib.Path, target: Tree, item: str = "params") -> Tree:
  """The parameters (or `item="ema"`) of another run's newest checkpoint, on any mesh.

  Args:
    run: its working directory, which holds checkpoints/.
    target: arrays or ShapeDtypeStructs with the shardings to restore to.

  Raises:
    ValueError: no checkpoint there, no such item, or parameters of another shape.
  """
  directory = pathlib.Path(run).absolute() / "checkpoints"
  if not directory.is_dir():
    raise ValueError(f"{run} has no checkpoints/; give the working directory of a run")
  with ocp.CheckpointManager(directory) as manager:
    step = manager.latest_step()
    if step is None:
      raise ValueError(f"{directory} holds no checkpoint; has the run saved one?")
    _check_shapes({item: target}, manager.item_metadata(step), directory / str(step))
    args = ocp.args.Composite(**{item: _restore_args(target)})
    return manager.restore(step, args=args)[item]


def _items(state: State) -> dict[str, Tree]:
  return {k: getattr(state, k) for k in ITEMS if jax.tree.leaves(getattr(state, k))}


def _restore_args(tree: Tree) -> Any:
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), tree)
  return ocp.args.PyTreeRestore(
    shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes)
  )


def _check_shapes(items: dict[str, Tree], saved: Any, path: pathlib.Path) -> None:
  """Raises WrongShape where a saved leaf is missing, or of another shape, than the target's."""
  for name, tree in items.items():
    if name not in saved or saved[name] is None:
      raise WrongShape(f"{path} has no {name}; it was saved by another kind of run")
    want = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree.leaves_with_path(tree)}
    meta = getattr(saved[name], "tree", saved[name])
    have = [tuple(v.shape) for v in jax.tree.leaves(meta, is_leaf=lambda v: hasattr(v, "shape"))]
    if sorted(have) != sorted(tuple(s) for s in want.values()):
      raise WrongShape(
        f"{path}: {name} has {len(have)} arrays, {_count(have)} numbers, and this config's "
        f"{len(want)} and {_count(want.values())}; use the model and method it was saved with"
      )


def _count(shapes: Any) -> int:
  return sum(math.prod(shape) for shape in shapes)
