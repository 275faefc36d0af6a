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

from jaxunlearn import (
  adapters,
  checkpoint,
  data,
  errors,
  fields,
  latents,
  methods,
  models,
  prompts,
  streams,
)
from jaxunlearn.checkpoint import State
from jaxunlearn.data import roll, synthetic
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.mesh import profiling, sharding
from jaxunlearn.models import text_to_image
from jaxunlearn.weights import layout, of_run, pretrained, stable_diffusion

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
  trained: adapters.Trained = adapters.ALL
  codec: latents.Pixels | latents.Codec = latents.PIXELS

  def predictor(self, frozen: Tree) -> adapters.Predictor:
    """(frozen, params, x_t, t, c) -> eps; equal for runs whose prompts alone differ."""
    net = self.net
    if text_to_image.ENCODED_ONCE in frozen:
      net = dataclasses.replace(net, book=None)
    return adapters.predictor(self.trained, net, self.process)

  def split(self, whole: Tree) -> tuple[Tree, Tree]:
    """(trained, frozen) of the network's parameters, as config.trained says.

    A text encoder that is frozen encodes the prompts here, once, where they are few.
    """
    whole = self.trained.extended(self.net, whole)
    params, frozen = self.trained.split(of_run.split_key(self.config.seed), whole)
    if isinstance(self.net, text_to_image.Net) and params.keys() == {"unet"}:
      frozen = {**frozen, **self.net.encoded(whole)}
    return params, frozen

  def host_batch(self, step: int) -> dict[str, methods.Rows]:
    """The rows of a batch that this process' devices hold: all of them with one process."""
    where = sharding.batch_sharding(self.mesh)
    mine = lambda stream: sharding.local_rows(where, stream.batch)
    return {name: stream.at(step, mine(stream)) for name, stream in self.streams.items()}

  def entries(self) -> dict[roll.Key, roll.Entry]:
    """What each record that the run reads is, to be known again when it goes on."""
    others = {name: s.records for name, s in self.streams.items() if s.records is not self.train}
    return roll.of(self.train, self.forget, self.heldout, others)

  def batch(self, step: int) -> dict[str, methods.Rows]:
    return self.on_mesh(self.host_batch(step))

  def on_mesh(self, batch: dict[str, methods.Rows]) -> dict[str, methods.Rows]:
    where = sharding.batch_sharding(self.mesh)
    size = lambda name: self.streams[name].batch
    return {name: sharding.put_rows(where, rows, size(name)) for name, rows in batch.items()}

  def batches(self, first: int, last: int) -> Iterator[dict[str, methods.Rows]]:
    """The batches of the steps first .. last - 1, read ahead in threads, in order."""
    for stream in self.streams.values():
      if stream.moments:
        stream.moments()  # before the threads ask for it
    steps = grain.MapDataset.range(first, last).map(self.host_batch)
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=READ_AHEAD)
    return map(self.on_mesh, steps.to_iter_dataset(ahead))


def build(config: ConfigDict) -> Setup:
  """Checks the whole config before any work; a model `pretrained` is spelt out in it.

  Raises:
    ValueError: a name, field, id or shape that does not fit, in one line.
  """
  fields.check(config)
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
  of_file = config.model.name == "pretrained"
  pretrained.adopt(config)
  fields.check(config)  # what a folder said
  net, text = models.make(**config.model), config.model.name == pretrained.TEXT_TO_IMAGE
  codec: latents.Pixels | latents.Codec = latents.PIXELS
  if text or ("codec" in config and config.codec.path):
    codec = stable_diffusion.read_codec(config.codec.path, config.codec.batch)
  shape = codec.shape(net.image_shape)
  train, heldout, request = _records(config, net, shape)
  if train.image.shape[1:] != shape:
    raise ValueError(
      f"images are {train.image.shape[1:]} and the model takes {shape}; "
      f"{size_advice(config, train.image.shape[1:], shape, of_file)}"
    )
  if text:
    net = with_prompts(config, net, train, request)
  forget = request.mask(train)
  request.warn_of_likes(train, forget)
  concept = request.concept(train) if check_conditions(net, train) else None
  missing = [name for name in method.streams if name not in config.streams]
  if missing:
    raise ValueError(
      f"method {config.method.name} reads stream {missing[0]!r}; "
      f"set config.streams.{missing[0]} to one of: {', '.join(streams.SUBSETS)}"
    )
  takes = {name: config.streams[name] for name in method.streams}
  made = streams.make(
    train, forget, takes, config.train.batch, config.seed, concept, bool(net.classes), codec
  )
  streams.check_attack(config.attack, made, train, forget)
  streams.check_still(config.attack, config.train.steps, config.init_bits)
  setup = Setup(
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
    trained=adapters.Trained(**config.trained),
    codec=codec,
  )
  check_needs(setup)
  check_trained(setup)
  return setup


def without_data(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  process: Diffusion,
  net: Any,
  method: methods.Objective,
  **rest: Any,
) -> Setup:
  """That of a run which reads no data: for what a step takes, on arrays of its shapes."""
  none: Any = None
  data_of = {"train": none, "heldout": none, "forget": none, "concept": None, "streams": {}}
  return Setup(config, mesh, process, net, method, make_optimizer(config), **data_of, **rest)


def with_prompts(config: ConfigDict, net: Any, records: data.Records, request: data.Forget) -> Any:
  """The text-to-image network with the prompts of the data's conditions."""
  options = prompts.Options(**config.prompts)
  words = stable_diffusion.read_tokenizer(config.prompts.tokenizer)
  if words.vocabulary != net.text.vocab_size:
    raise ValueError(
      f"the text encoder has {net.text.vocab_size} tokens and config.prompts.tokenizer "
      f"{words.vocabulary}; name the tokenizer of the model"
    )
  if bool(options.token) != (config.trained.pattern == "token"):
    raise ValueError(
      f"config.prompts.token is {options.token!r} and config.trained.pattern "
      f"{config.trained.pattern!r}; a new token is what is trained: set both (the pattern to "
      "'token'), or neither"
    )
  names = prompts.spelt(records.vocabulary, options.blank)
  new = prompts.New(names, words)
  if options.token:
    new = prompts.with_token(options, names, request.concept(records), words)
  book = prompts.write(new.vocabulary, options.template, new.words, new.start)
  with config.unlocked():
    config.model.classes = tuple(map(len, records.vocabulary))
    config.model.tokens = options.token_count if options.token else 0
  return models.make(**config.model, book=book)


def _records(
  config: ConfigDict, net: Any, shape: tuple[int, int, int]
) -> tuple[data.Records, data.Records, data.Forget]:
  """What to train on, what is held out, and what of it is to be forgotten."""
  if config.train.synthetic:
    noise = synthetic.records(shape, tuple(net.classes))
    return noise, noise, synthetic.FORGET
  train, heldout = data.load(**config.data)
  request = data.Forget(**config.forget)
  return request.remaining(train), heldout, request


def check_needs(setup: Setup) -> None:
  """Raises ValueError where the method needs what the run does not have: methods.NEEDS."""
  has = {
    "c": bool(setup.net.classes),
    "concept": setup.concept is not None,
    "to": any(stream.take.to not in ("", "own") for stream in setup.streams.values()),
    "own": any(stream.take.to == "own" for stream in setup.streams.values()),
    "text": getattr(setup.net, "book", None) is not None,
    "token": setup.trained.pattern == "token",
  }
  for word, what in methods.NEEDS.items():
    if word in setup.method.needs and not has[word]:
      name = setup.config.method.name
      raise ValueError(f"method {name} needs {what}, or take another method")


def check_trained(setup: Setup) -> None:
  """Raises ValueError where config.trained finds nothing in the network; nothing is computed."""
  if not setup.trained.everything:
    jax.eval_shape(setup.split, with_prefix(setup, models.shapes(setup.net)))


def size_advice(
  config: ConfigDict, images: tuple[int, ...], model: tuple[int, ...], of_file: bool
) -> str:
  """What makes images and model of one shape: fields of the data, or of a model of no file."""
  wanted = {"size": model[0], "channels": model[2]}
  given = {"size": images[0], "channels": images[2]}
  change = {k: v for k, v in wanted.items() if k in config.data and v != given[k]}
  if "channels" in change and "convert" in config.data:
    change["convert"] = True
  advice = " ".join(f"--config.data.{name}={value}" for name, value in change.items())
  if model[0] == model[1] and all(name in change or wanted[name] == given[name] for name in wanted):
    return f"set {advice}"
  if of_file:
    return "take a data set of the model's size"
  return "set config.model.sample_size and in_channels to the images'"


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
  """AdamW after a clip of the global norm, under a constant or cosine schedule with warm-up.

  clip None takes gradients of any norm as they are.
  """
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
    optax.identity() if opt.clip is None else optax.clip_by_global_norm(opt.clip),
    optax.adamw(rates[opt.schedule], opt.b1, opt.b2, weight_decay=opt.weight_decay),
  )


def start_params(setup: Setup) -> Tree:
  """Where a run starts (host arrays): random, another run's, or weights in diffusers' layout."""
  return of_run.begun(setup.config.to_dict(), setup.net, setup.mesh)


def with_prefix(setup: Setup, params: Tree) -> Tree:
  """The parameters with the tokens before each prompt that config.prompts asks for."""
  return text_to_image.with_prefix(params, setup.config.to_dict().get("prompts"), setup.net)


def make_state(setup: Setup, params: Tree) -> State:
  """Step 0 from all parameters: those that are trained, their EMA, optimiser state, extras.

  All is laid on the mesh; frozen parameters are beside it.
  """
  text = encoder(setup, params) if "text" in setup.method.needs else None
  params, frozen = setup.split(params)
  rng = jax.random.fold_in(jax.random.key(setup.config.seed), 2**32 - 1)
  params, extras = methods.begin(
    setup.method,
    setup.predictor(frozen).bound(frozen),
    params,
    setup.process,
    setup.streams,
    rng,
    text,
    ancestor(setup),
  )
  params = jax.tree.map(jnp.asarray, params)
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=params if setup.config.ema else {},
    opt=start_optimizer(setup, params),
    extras=extras,
    frozen=jax.tree.map(jnp.asarray, frozen),
  )
  return sharding.put(state, sharding.state_sharding(setup.mesh, state))


def ancestor(setup: Setup) -> Tree | None:
  """What is trained, of the second model that the method begins with, if there is one.

  Raises:
    ValueError: LoRA, beside which the frozen rest would be that of the other model.
  """
  origin, config = setup.method.ancestor(), setup.config
  if not origin:
    return None
  if config.trained.rank:
    raise ValueError(
      f"the method begins with {origin!r} and trained.rank is {config.trained.rank}; use rank 0"
    )
  whole = of_run.start(origin, setup.net, config.seed, setup.mesh)
  return setup.trained.split(of_run.split_key(config.seed), whole)[0]


def encoder(setup: Setup, params: Tree) -> methods.Text:
  """The text side of a text-to-image model with all its parameters."""
  read = lambda: stable_diffusion.read_tokenizer(setup.config.prompts.tokenizer)
  return prompts.Encoder(setup.net, params, read)


def start_optimizer(setup: Setup, params: Tree) -> Tree:
  """Its state at step 0: nothing yet, or what the run that this one starts from ended with.

  Raises:
    ValueError: config.init_from is no run, or one of another optimiser.
  """
  if not setup.config.init_optimizer:
    return setup.tx.init(params)
  shapes = jax.eval_shape(setup.tx.init, params)
  whole = sharding.shaped(setup.mesh, shapes, sharding.replicated(setup.mesh))
  return checkpoint.read_params(layout.locate(setup.config.init_from), whole, "opt")
