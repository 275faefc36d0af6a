"""What a config means: every object of a run, checked before any work, and its first state."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxunlearn import checkpoint, data, errors, methods, models, streams
from jaxunlearn.checkpoint import State
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.mesh import profiling, sharding
from jaxunlearn.weights import layout, pretrained

Tree = Any

READ_AHEAD = 4  # batches


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
  sampler: sampling.Options = sampling.DEFAULT

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
    sampler=sampling.Options.of(dict(config.sampler)),
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
  folder = layout.locate(setup.config.init_from)
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
