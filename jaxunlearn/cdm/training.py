"""Training of the shards: each its own run, side by side in one program.

A step is `vmap` over the stacked parameters and optimiser states of `lanes` shards; each has its
own stream, clip, schedule, random keys and checkpoints. Nothing is shared but the frozen backbone,
so that the parameters of a shard are a function of its own records alone, bit by bit. Of other bits
is only what another number of lanes or of devices makes: XLA adds up in another order then.

On a mesh the lanes lie over the devices (sharding.source_sharding). Where a lane has several, each
takes a part of its rows and they average the gradients; `fsdp` splits its parameters, EMA and
optimiser state over them, and what is frozen. Lanes send each other nothing.

    RUN/shards/NAME/  records.txt, metrics.jsonl, checkpoints/
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jaxunlearn import build, checkpoint, data, step, train
from jaxunlearn.cdm.compartment import Compartment
from jaxunlearn.cdm.ledger import Ledger, files_of
from jaxunlearn.cdm.shards import Shard
from jaxunlearn.checkpoint import State
from jaxunlearn.evaluation import COMPILING, STOPPED, Stopped
from jaxunlearn.mesh import processes, sharding
from jaxunlearn.reports import writer

Tree = Any
KEEP = 10**6  # every checkpoint is one that a deletion may go back to


@dataclasses.dataclass(frozen=True)
class Training:
  """What the training of any shard of a run is made of."""

  setup: build.Setup
  compartment: Compartment
  backbone: Tree
  folder: pathlib.Path  # of the shards
  ledger: Ledger
  fingerprint: Callable[[data.Records], str]  # keys.py
  lanes: int = 1
  stopped: Callable[[], bool] = lambda: False

  def run(self, shards: Iterable[Shard]) -> dict[str, State]:
    """Trains those that are not finished, from their newest checkpoints; all states, by name.

    Raises:
      Diverged, Stopped: as train.run; what was saved is kept.
    """
    all_ = {shard.name: shard for shard in shards}
    states = {name: self.restore(shard) for name, shard in all_.items()}
    steps = self.setup.config.train.steps
    done = {name: int(state.step) for name, state in states.items()}
    bar = tqdm(
      total=steps * len(all_),
      initial=sum(done.values()),
      desc=COMPILING,
      disable=not processes.first(),
    )
    while min(done.values()) < steps:
      first = min(done.values())
      until = min([at for at in done.values() if at > first], default=steps)
      group = [name for name, at in done.items() if at == first][: self.lanes]
      trained = self._advance([all_[n] for n in group], [states[n] for n in group], until, bar)
      states |= trained
      done |= dict.fromkeys(group, until)
    bar.close()
    return states

  def start(self, shard: Shard) -> State:
    """Step 0 of a shard, from its seed and the backbone."""
    params = initial(self.compartment, jax.random.key(shard.seed), self.backbone)
    ema = jax.tree.map(jnp.copy, params) if self.setup.config.ema else {}
    state = State(jnp.zeros((), jnp.int32), params, ema, self.setup.tx.init(params), {})
    return sharding.put(processes.local(state), sharding.state_sharding(self.setup.mesh, state))

  def restore(self, shard: Shard) -> State:
    """The newest checkpoint that the ledger knows, or step 0."""
    processes.from_first(lambda: self._remove_unrecorded(shard.name))
    fresh, saves = self.start(shard), self._saves(shard.name)
    try:
      return saves.restore(fresh) or fresh
    finally:
      saves.close()

  def _remove_unrecorded(self, name: str) -> None:
    """Of a run that was killed before it wrote the line of a checkpoint; that is made again."""
    directory, known = self.folder / name / "checkpoints", self.recorded(name)
    for path in directory.glob("*") if directory.is_dir() else ():
      if path.name.isdigit() and int(path.name) not in known:
        shutil.rmtree(path)

  def recorded(self, name: str) -> set[int]:
    """The steps of a shard's checkpoints that the ledger has, without those removed since."""
    steps: set[int] = set()
    for line in self.ledger.lines():
      if line.get("source") == name and line["event"] == "trained":
        steps.add(line["last_step"])
      prefix = f"shards/{name}"
      for gone in line.get("removed", ()):
        if gone == prefix:
          steps.clear()
        elif gone.startswith(f"{prefix}/checkpoints/"):
          steps.discard(int(gone.rpartition("/")[2]))
    return steps

  def _saves(self, name: str) -> checkpoint.Checkpoints:
    return checkpoint.Checkpoints(self.folder / name / "checkpoints", KEEP)

  def _advance(
    self, shards: Sequence[Shard], states: Sequence[State], last: int, bar: tqdm
  ) -> dict[str, State]:
    """Trains the shards, all at one step, up to `last`; an idle lane repeats the first shard."""
    options, where = self.setup.config.train, self._where
    first, names = int(states[0].step), [shard.name for shard in shards]
    idle = [0] * (self.lanes - len(shards))
    lanes = [shards[i] for i in (*range(len(shards)), *idle)]
    stacked = stack(where, *(states[names.index(lane.name)] for lane in lanes))
    seeds = sharding.put(np.array([lane.seed for lane in lanes], np.uint32), where)
    program, saved, pending = step.program(self.setup), first, []
    for at, batch in enumerate(batches(lanes, where, first, last), first + 1):
      stacked, metrics = update(
        program, self.compartment, where, self.frozen, stacked, seeds, batch
      )
      pending.append((at, metrics))
      bar.set_description("train sources", refresh=False)
      bar.update(len(shards))
      stop = self.stopped()
      if stop or at % options.checkpoint_every == 0 or at == last:
        self._flush(names, pending)
        self._save(shards, stacked, saved)
        saved = at
      if stop:
        logging.warning("stopped by a signal after step %d; launch again to go on", at)
        raise Stopped(STOPPED)
    return dict(zip(names, self._apart(stacked), strict=False))

  @functools.cached_property
  def _where(self) -> NamedSharding:
    return sharding.source_sharding(self.setup.mesh, self.lanes)

  @functools.cached_property
  def frozen(self) -> Tree:
    """The backbone on the devices of every lane."""
    backbone = processes.local(self.backbone)
    return sharding.put(backbone, sharding.state_sharding(self._where.mesh, backbone))

  def _apart(self, stacked: State) -> list[State]:
    """The state of each lane, over all devices."""
    return unstack(self.setup.mesh, stacked)

  def _flush(self, names: Sequence[str], pending: list[tuple[int, Tree]]) -> None:
    """Writes the metrics since the last checkpoint; raises Diverged at one that is not finite."""
    every = self.setup.config.train.log_every
    logged = [(at, jax.device_get(processes.local(metrics))) for at, metrics in pending]
    for i, name in enumerate(names):
      path = self.folder / name / "metrics.jsonl"
      path.parent.mkdir(parents=True, exist_ok=True)
      with writer.Writer(path, logged[0][0] - 1) as out:
        for at, metrics in logged:
          scalars = {key: float(value[i]) for key, value in metrics.items()}
          if at % every == 0:
            out.write_scalars(at, scalars)
          bad = sorted(key for key, value in scalars.items() if not np.isfinite(value))
          if bad:
            raise train.Diverged(
              f"{bad[0]} of source {name} is {scalars[bad[0]]} at step {at}; its last good "
              "checkpoint is kept. Lower config.optimizer.learning_rate"
            )
    pending.clear()

  def _save(self, shards: Sequence[Shard], stacked: State, first: int) -> None:
    """A checkpoint of each shard, and what it has seen since the one before, in the ledger."""
    for shard, state in zip(shards, self._apart(stacked), strict=False):
      saves, last = self._saves(shard.name), int(state.step)
      saves.save(state)
      saves.wait()
      saves.close()
      processes.from_first(functools.partial(self._record, shard, first, last))

  def _record(self, shard: Shard, first: int, last: int) -> None:
    """The line of a checkpoint: what was seen since the one before."""
    self.ledger.append(
      "trained",
      files=files_of(self.folder / shard.name / "checkpoints" / str(last)),
      source=shard.name,
      first_step=first,
      last_step=last,
      records=len(shard.records),
      fingerprint=self.fingerprint(shard.records),
      seed=shard.seed,
      batch=shard.batch,
      slices=shard.slices,
    )


@functools.partial(jax.jit, static_argnums=0)
def initial(compartment: Compartment, key: jax.Array, backbone: Tree) -> Tree:
  """The parameters that a source starts from; compiled once for all of them."""
  return compartment.init(key, backbone)


@functools.partial(jax.jit, static_argnums=0)
def stack(where: NamedSharding, *states: State) -> State:
  """The states of all lanes, laid over the devices."""
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  return jax.lax.with_sharding_constraint(stacked, sharding.stacked_sharding(where, stacked))


@functools.partial(jax.jit, static_argnums=0)
def unstack(mesh: Mesh, stacked: State) -> list[State]:
  """The state of each lane, laid over the mesh as that of any run."""
  lanes = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(stacked.step))]
  where = [sharding.state_sharding(mesh, lane) for lane in lanes]
  return jax.lax.with_sharding_constraint(lanes, where)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def update(
  program: step.Program,
  compartment: Compartment,
  where: NamedSharding,
  backbone: Tree,
  states: State,
  seeds: jax.Array,
  batches: Mapping[str, Any],
) -> tuple[State, Tree]:
  """One step of every lane: all leaves of states, seeds and batches lead with that axis.

  `where` is their layout; what `fsdp` splits of a lane is gathered for its gradients alone. A
  lane's rows are drawn as a whole; each of its devices takes a part of them, where they divide, and
  all of them otherwise.
  """
  mesh = where.mesh
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  frozen = sharding.state_sharding(mesh, backbone)
  trained = sharding.state_sharding(mesh, jax.eval_shape(sharding.first_of, states.params))

  def gradients(backbone: Tree, state: State, seed: jax.Array, batch: Mapping[str, Any]) -> Any:
    draws = step.draw_rows(program, seed, state.step, batch, state.extras)
    rows = len(jax.tree.leaves(draws)[0])
    if rows % parts == 0:
      first, size = jax.lax.axis_index(sharding.BATCH_AXES) * (rows // parts), rows // parts
      draws = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), draws)
    source = functools.partial(compartment.apply, sharding.gather(backbone, frozen))
    apply, draws = step.with_dropout(source, draws)
    found, metrics = program.method.gradients(
      apply, sharding.gather(state.params, trained), program.process, draws, state.extras, None
    )
    mean = tuple(sharding.mean_scattered(grads, trained) for grads in found)
    return mean, jax.lax.pmean(metrics, sharding.BATCH_AXES)

  specs = lambda layout: jax.tree.map(lambda one: one.spec, layout)
  laid, lane = sharding.stacked_sharding(where, states), PartitionSpec("source")
  over = jax.shard_map(
    jax.vmap(gradients, in_axes=(None, 0, 0, 0)),
    mesh=mesh,
    in_specs=(specs(frozen), specs(laid), lane, lane),
    out_specs=((specs(laid.params),) * len(program.method.terms), lane),
    check_vma=False,
  )
  grads, metrics = over(backbone, states, seeds, batches)
  states, metrics = jax.vmap(functools.partial(step.apply_update, program))(states, grads, metrics)
  return jax.lax.with_sharding_constraint(states, laid), metrics


def batches(
  lanes: Sequence[Shard], where: NamedSharding, first: int, last: int
) -> Iterator[dict[str, Any]]:
  """The stacked batches of the steps first .. last - 1, read ahead in threads, in order.

  Of several processes each reads those of the lanes that lie on its devices.
  """
  mine = [lanes[i] for i in sharding.local_rows(where, len(lanes))]
  for shard in mine:
    shard.prepare()

  def read(at: int) -> Any:
    return jax.tree.map(lambda *rows: np.stack(rows), *[shard.at(at) for shard in mine])

  ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=build.READ_AHEAD)
  found = grain.MapDataset.range(first, last).map(read).to_iter_dataset(ahead)
  return ({"x": sharding.put_rows(where, rows, len(lanes))} for rows in found)
