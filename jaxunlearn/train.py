"""The only training loop: restore, update, log, checkpoint, evaluate.

Pretraining, retraining, unlearning and attacks are all runs of this loop; they differ in their
streams, their method and where they start from. Every random number comes from (seed, step) and
the data position from the step, so that a run which was killed resumes bit for bit.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxunlearn import checkpoint, data, errors, methods, models, streams
from jaxunlearn.checkpoint import State
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evaluation import STOPPED, Evaluation, Stopped
from jaxunlearn.mesh import processes, profiling, sharding
from jaxunlearn.reports import report
from jaxunlearn.reports.writer import Writer, replace
from jaxunlearn.step import make_update
from jaxunlearn.weights import pretrained

Tree = Any

READ_AHEAD = 4  # batches
_ADVICE = "the last good checkpoint is kept. Lower config.optimizer.learning_rate, or stop earlier"


class Diverged(RuntimeError):
  """A loss or gradient became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a config means: every object of a run, before its first parameter."""

  config: ConfigDict
  mesh: jax.sharding.Mesh
  process: Diffusion
  net: Any
  method: methods.Objective
  tx: optax.GradientTransformation
  train: data.Records
  heldout: data.Records
  forget: np.ndarray  # [N] bool
  concept: data.Concept | None  # the class or style to forget, of a conditional model
  streams: dict[str, streams.Stream]

  def host_batch(self, step: int) -> dict[str, methods.Rows]:
    """The rows of a batch that this process' devices hold: all of them with one process."""
    where = sharding.batch_sharding(self.mesh)
    mine = lambda stream: sharding.local_rows(where, stream.batch)
    return {name: stream.at(step, mine(stream)) for name, stream in self.streams.items()}

  def batch(self, step: int) -> dict[str, methods.Rows]:
    return self.on_mesh(self.host_batch(step))

  def on_mesh(self, batch: dict[str, methods.Rows]) -> dict[str, methods.Rows]:
    where = sharding.batch_sharding(self.mesh)
    size = lambda name: self.streams[name].batch
    return {name: sharding.put_rows(where, rows, size(name)) for name, rows in batch.items()}

  def batches(self, first: int, last: int) -> Iterator[dict[str, methods.Rows]]:
    """The batches of the steps first .. last - 1, read ahead in threads, in order."""
    steps = grain.MapDataset.range(first, last).map(self.host_batch)
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=READ_AHEAD)
    return map(self.on_mesh, steps.to_iter_dataset(ahead))


def build(config: ConfigDict) -> Setup:
  """Checks the whole config before any work; a model `pretrained` is spelt out in it.

  Raises:
    ValueError: a name, field, id or shape that does not fit, in one line.
  """
  for field in ("batch", "micro_batches", "log_every", "checkpoint_every", "keep"):
    if config.train[field] < 1:
      raise ValueError(f"config.train.{field} is {config.train[field]}; use at least 1")
  profiling.window(config.profile)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  if "sources" not in config:  # the rows of a source need not divide
    sharding.check_batch(config.train.batch, config.train.micro_batches, mesh)
  method = methods.make(**config.method)
  if method.whole_batch and config.train.micro_batches > 1:
    raise ValueError(
      f"config.train.micro_batches is {config.train.micro_batches} and the steps of method "
      f"{config.method.name} take whole batches; use 1"
    )
  pretrained.adopt(config)
  net = models.make(**config.model)
  train, heldout = data.load(**config.data)
  request = data.Forget(**config.forget)
  train = request.remaining(train)
  if train.image.shape[1:] != net.image_shape:
    raise ValueError(
      f"images are {train.image.shape[1:]} and the model takes {net.image_shape}; "
      "set config.model.sample_size and in_channels to the images'"
    )
  forget = request.mask(train)
  concept = request.concept(train) if check_conditions(net, train) else None
  missing = [name for name in method.streams if name not in config.streams]
  if missing:
    raise ValueError(
      f"method {config.method.name} reads stream {missing[0]!r}; "
      f"set config.streams.{missing[0]} to one of: {', '.join(streams.SUBSETS)}"
    )
  takes = {name: config.streams[name] for name in method.streams}
  made = streams.make(
    train, forget, takes, config.train.batch, config.seed, concept, bool(net.classes)
  )
  streams.check_attack(config.attack, made, train, forget)
  return Setup(
    config=config,
    mesh=mesh,
    process=Diffusion(**config.process),
    net=net,
    method=method,
    tx=make_optimizer(config),
    train=train,
    heldout=heldout,
    forget=forget,
    concept=concept,
    streams=made,
  )


def check_conditions(net: Any, records: data.Records) -> bool:
  """Whether the model is conditional; raises ValueError where its conditions are not the data's."""
  counts = tuple(map(len, records.vocabulary))
  if net.classes and net.classes != counts:
    raise ValueError(
      f"config.model.classes is {net.classes} and the data has {counts} classes (and styles); "
      "set it to that, or to () for an unconditional model"
    )
  return bool(net.classes)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """AdamW after a clip of the global norm, under a constant or cosine schedule with warm-up."""
  opt, steps = config.optimizer, max(config.train.steps, 1)
  start = 0.0 if opt.warmup else opt.learning_rate
  rates = {
    "constant": optax.linear_schedule(start, opt.learning_rate, max(opt.warmup, 1)),
    "cosine": optax.warmup_cosine_decay_schedule(
      0.0, opt.learning_rate, opt.warmup, max(steps, opt.warmup + 1)
    ),
  }
  errors.check_choice("learning-rate schedule", opt.schedule, rates)
  return optax.chain(
    optax.clip_by_global_norm(opt.clip),
    optax.adamw(rates[opt.schedule], opt.b1, opt.b2, weight_decay=opt.weight_decay),
  )


def start_params(setup: Setup) -> Tree:
  """Where a run starts (host arrays): random, another run's, or weights in diffusers' layout."""
  shapes = jax.eval_shape(setup.net.init, jax.random.key(0))
  if not setup.config.init_from:
    return jax.jit(setup.net.init)(jax.random.key(setup.config.seed))
  folder = pretrained.locate(setup.config.init_from)
  if not (folder / "checkpoints").is_dir():
    return pretrained.load(folder, shapes)
  whole = sharding.shaped(setup.mesh, shapes, sharding.replicated(setup.mesh))
  return checkpoint.read_params(folder, whole)


def make_state(setup: Setup, params: Tree) -> State:
  """Step 0: parameters, their EMA, optimiser state and the method's extras, laid on the mesh."""
  rng = jax.random.fold_in(jax.random.key(setup.config.seed), 2**32 - 1)
  extras = setup.method.prepare(setup.net.apply, params, setup.process, setup.streams, rng)
  params = setup.method.start(params, setup.streams, jax.random.fold_in(rng, 1))
  params = jax.tree.map(jnp.asarray, params)
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=params if setup.config.ema else {},
    opt=setup.tx.init(params),
    extras=extras,
  )
  return sharding.put(state, sharding.state_sharding(setup.mesh, state))


def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains from the newest checkpoint (or the start) to the last step; returns results.json.

  Raises:
    ValueError: bad input, before any work.
    Diverged: a NaN or infinity; the last good checkpoint is kept.
    Damaged: every checkpoint of the run is damaged.
    Stopped: a signal; the state is saved.
  """
  setup = build(config)
  workdir = pathlib.Path(workdir)
  with processes.stop_signal() as stopped, contextlib.ExitStack() as stack:
    params = start_params(setup)
    evaluation = Evaluation(setup, workdir, stopped)
    processes.from_first(lambda: claim(workdir, config))
    if config.eval.before:
      evaluation.once("before", params)
    saves = checkpoint.Checkpoints(workdir / "checkpoints", config.train.keep)
    stack.callback(saves.close)
    state = make_state(setup, params)
    origin = jax.tree.map(jnp.copy, state.params) if config.attack else None
    del params
    state = saves.restore(state) or state
    writer = stack.enter_context(Writer(workdir / "metrics.jsonl", int(state.step)))
    state = train(setup, state, saves, writer, stopped, evaluation.probe, origin)
    _save(saves, state)
    saves.wait()
    if config.eval.after:
      evaluation.once("after", state.ema or state.params)
  return processes.from_first(lambda: report.write(workdir))


def train(
  setup: Setup,
  state: State,
  saves: checkpoint.Checkpoints,
  writer: Writer,
  stopped: Callable[[], bool],
  probe: Callable[[int, Tree], dict[str, float]],
  origin: Tree | None = None,
) -> State:
  """The loop from the state's step to config.train.steps; probes log the distance to `origin`."""
  config = setup.config.train
  pending: list[tuple[int, Tree]] = []  # metrics still on the device
  first = int(state.step)
  folder = saves.directory.parent / "profile"
  update = profiling.traced(make_update(setup, state), first, setup.config.profile, folder)
  batches = setup.batches(first, config.steps)
  bar = tqdm(
    batches, initial=first, total=config.steps, desc="train", disable=not processes.first()
  )
  for step, batch in enumerate(bar, start=first + 1):
    state, metrics = update(state, batch)
    pending.append((step, metrics))
    stop = stopped()  # read once a step, so that what is saved has been logged
    save = stop or step % config.checkpoint_every == 0
    probing = setup.config.eval.every and step % setup.config.eval.every == 0
    if save or probing or step % config.log_every == 0 or step == config.steps:
      last = _flush(pending, writer)
      bar.set_postfix({k: f"{v:.4g}" for k, v in last.items() if k.startswith("loss")})
    if probing:
      writer.write_scalars(step, probe(step, state.ema or state.params))
      if origin is not None:
        writer.write_scalars(step, {"distance": float(_distance(state.params, origin))})
    if save:
      _save(saves, state)
    if stop:
      saves.wait()
      logging.warning("stopped by a signal after step %d; launch again to go on", step)
      raise Stopped(STOPPED)
  return state


def _save(saves: checkpoint.Checkpoints, state: State) -> None:
  """Starts a checkpoint; raises Diverged where the state is not finite."""
  if not _finite((state.params, state.ema, state.opt)):
    raise Diverged(
      f"the parameters or the optimiser's state are not finite after step {int(state.step)}; "
      f"{_ADVICE}"
    )
  saves.save(state)


@jax.jit
def _distance(params: Tree, origin: Tree) -> jax.Array:
  """||theta_s - theta_0||, how far an attack has travelled."""
  return optax.tree.norm(jax.tree.map(jnp.subtract, params, origin))


@jax.jit
def _finite(tree: Tree) -> jax.Array:
  return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _flush(pending: list[tuple[int, Tree]], writer: Writer) -> dict[str, float]:
  """Writes the metrics so far; raises Diverged at the first that is not finite."""
  scalars: dict[str, float] = {}
  for step, metrics in pending:
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = sorted(name for name, value in scalars.items() if not np.isfinite(value))
    writer.write_scalars(step, scalars)
    if bad:
      raise Diverged(f"{bad[0]} is {scalars[bad[0]]} at step {step}; {_ADVICE}")
  pending.clear()
  return scalars


def claim(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Makes the working directory and its config.json; it belongs to one config."""
  path, text = workdir / "config.json", config.to_json(indent=2, sort_keys=True) + "\n"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != text:
      old, new = json.loads(path.read_text()), json.loads(text)
      differ = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
      if set(differ) - {"mesh", "profile"}:
        raise ValueError(
          f"{workdir} holds a run of another config (differs in: {', '.join(differ)}); "
          "use another --workdir, or delete this one"
        )
    replace(path, text)
  except OSError as error:
    raise ValueError(f"cannot write to {workdir} ({error}); use another --workdir") from error
