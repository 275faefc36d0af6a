"""Training of the shards: each its own run, side by side in one program.

A step is `vmap` over the stacked parameters and optimiser states of `lanes` shards; each has its
own stream, clip, schedule, random keys and checkpoints. Nothing is shared but the frozen backbone,
so that the parameters of a shard are a function of its own records alone, bit by bit. Of other bits
is only what another number of lanes makes: XLA adds up in another order then.

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
from tqdm import tqdm

from jaxunlearn import checkpoint, sharding, step, train, writer
from jaxunlearn.cdm.compartment import Compartment
from jaxunlearn.cdm.ledger import Ledger, files_of
from jaxunlearn.cdm.shards import Shard
from jaxunlearn.checkpoint import State
from jaxunlearn.evaluation import STOPPED, Stopped

Tree = Any
KEEP = 10**6  # every checkpoint is one that a deletion may go back to


@dataclasses.dataclass(frozen=True)
class Training:
  """What the training of any shard of a run is made of."""

  setup: train.Setup
  compartment: Compartment
  backbone: Tree
  folder: pathlib.Path  # of the shards
  ledger: Ledger
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
    bar = tqdm(total=steps * len(all_), initial=sum(done.values()), desc="train sources")
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
    params = jax.jit(self.compartment.init)(jax.random.key(shard.seed), self.backbone)
    ema = jax.tree.map(jnp.copy, params) if self.setup.config.ema else {}
    state = State(jnp.zeros((), jnp.int32), params, ema, self.setup.tx.init(params), {})
    return sharding.put(state, sharding.replicated(self.setup.mesh))

  def restore(self, shard: Shard) -> State:
    """The newest checkpoint that the ledger knows, or step 0."""
    directory, known = self.folder / shard.name / "checkpoints", self.recorded(shard.name)
    for path in directory.glob("*") if directory.is_dir() else ():
      if path.name.isdigit() and int(path.name) not in known:
        shutil.rmtree(path)  # the run was killed before it was recorded; it is made again
    fresh, saves = self.start(shard), self._saves(shard.name)
    try:
      return saves.restore(fresh) or fresh
    finally:
      saves.close()

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
    options = self.setup.config.train
    first, names = int(states[0].step), [shard.name for shard in shards]
    idle = [0] * (self.lanes - len(shards))
    lanes = [*range(len(shards)), *idle]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[states[i] for i in lanes])
    seeds = jnp.array([shards[i].seed for i in lanes], jnp.uint32)
    program, saved, pending = step.program(self.setup), first, []
    for at, batch in enumerate(batches([shards[i] for i in lanes], first, last), first + 1):
      stacked, metrics = update(program, self.compartment, self.backbone, stacked, seeds, batch)
      pending.append((at, metrics))
      bar.update(len(shards))
      stop = self.stopped()
      if stop or at % options.checkpoint_every == 0 or at == last:
        self._flush(names, pending)
        self._save(shards, stacked, saved)
        saved = at
      if stop:
        logging.warning("stopped by a signal after step %d; launch again to go on", at)
        raise Stopped(STOPPED)
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(names)}

  def _flush(self, names: Sequence[str], pending: list[tuple[int, Tree]]) -> None:
    """Writes the metrics since the last checkpoint; raises Diverged at one that is not finite."""
    every = self.setup.config.train.log_every
    for i, name in enumerate(names):
      path = self.folder / name / "metrics.jsonl"
      path.parent.mkdir(parents=True, exist_ok=True)
      with writer.Writer(path, pending[0][0] - 1) as out:
        for at, metrics in pending:
          scalars = {key: float(value[i]) for key, value in jax.device_get(metrics).items()}
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
    for i, shard in enumerate(shards):
      state = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
      state = sharding.put(jax.device_get(state), sharding.replicated(self.setup.mesh))
      saves, last = self._saves(shard.name), int(state.step)
      saves.save(state)
      saves.wait()
      saves.close()
      self.ledger.append(
        "trained",
        files=files_of(self.folder / shard.name / "checkpoints" / str(last)),
        source=shard.name,
        first_step=first,
        last_step=last,
        records=len(shard.records),
        fingerprint=shard.records.fingerprint(),
        seed=shard.seed,
        batch=shard.batch,
        slices=shard.slices,
      )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def update(
  program: step.Program,
  compartment: Compartment,
  backbone: Tree,
  states: State,
  seeds: jax.Array,
  batches: Mapping[str, Any],
) -> tuple[State, Tree]:
  """One step of every lane: all leaves of states, seeds and batches lead with that axis."""

  def one(state: State, seed: jax.Array, batch: Mapping[str, Any]) -> tuple[State, Tree]:
    draws = step.draw(program, seed, state.step, batch, state.extras)
    apply = functools.partial(compartment.apply, backbone)
    grads, metrics = program.method.gradients(
      apply, state.params, program.process, draws, state.extras, None
    )
    return step.apply_update(program, state, grads, metrics)

  return jax.vmap(one)(states, seeds, batches)


def batches(shards: Sequence[Shard], first: int, last: int) -> Iterator[dict[str, Any]]:
  """The stacked batches of the steps first .. last - 1, read ahead in threads, in order."""

  def stack(at: int) -> dict[str, Any]:
    return {"x": jax.tree.map(lambda *rows: np.stack(rows), *[s.at(at) for s in shards])}

  ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=train.READ_AHEAD)
  return iter(grain.MapDataset.range(first, last).map(stack).to_iter_dataset(ahead))
