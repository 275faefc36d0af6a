"""The library: a method's step, samples, metrics and weights for networks and loops of others.

All meets in one function of yours, `apply(params, x_t, t, c) -> eps`, with its parameters as a
pytree of arrays: Flax Linen, Flax NNX, Equinox or a plain function. x_t are noised images
[B, H, W, C], float32 around [-1, 1], t their times [B] (int32 in 0..T-1; the metric `nll` asks at
float32 times too), c their conditions int32 [B], or None. eps is the predicted noise, of x_t's
shape. docs/library.md shows every name at work.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxunlearn import data, errors, evals, methods, models
from jaxunlearn.diffusion import Diffusion, EpsFn, sampling
from jaxunlearn.diffusion.guidance import guided, scale_of
from jaxunlearn.mesh import sharding
from jaxunlearn.methods import Rows
from jaxunlearn.models import unet, uvit
from jaxunlearn.weights import layout, pretrained, stable_diffusion

Tree = Any
Apply = Callable[..., Any]  # (params, x_t, t, c) -> eps
Pictures = Any  # an array: float32 [N, H, W, C] in [-1, 1], or uint8 pixels
BATCH = 64  # samples made at a time


def method(name: str, **fields: Any) -> methods.Objective:
  """A method by the name of its module in `jaxunlearn.methods`, like "siss".

  Its fields are the hyper-parameters of its paper: `method("siss", lam=0.25)`.

  Raises:
    ValueError: no such method, no such field, or a number out of its range.
  """
  return methods.make(name, **fields)


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of a method, up to the optimiser, which is yours.

      step = Step(method("siss"), apply, Diffusion())
      params, extras = step.start(params)
      direction, metrics = step.direction(params, extras, {"x": kept, "a": forget}, key, i)
      updates, opt = tx.update(direction, opt, params)

  A batch has one entry for each of `method.streams`: images, or `Rows(images, c)` where the network
  is conditional. All functions but `start` may be jitted, and none has a side effect.
  """

  method: methods.Objective
  apply: Apply
  process: Diffusion

  def start(
    self,
    params: Tree,
    data: Mapping[str, Any] | None = None,
    key: Array | None = None,
    text: methods.Text | None = None,
    onto: Tree | None = None,
  ) -> tuple[Tree, Tree]:
    """The parameters before the first step, and what the method computes once: the extras.

    Many methods, SISS among them, give the parameters back and no extras. `data` has the whole of
    each stream that the method asks for, in memory; `key` is the one of `direction`. UCE asks for
    the states of prompts: `text`. UNDO with an ancestor takes its parameters: `onto`.

    Raises:
      ValueError: a stream that the method reads is not in `data`, or lacks what it needs.
    """
    rng = jax.random.fold_in(jax.random.key(0) if key is None else key, 2**32 - 1)
    streams = _Whole(self.method, data or {})
    return methods.begin(
      self.method, _Checked(self.apply), params, self.process, streams, rng, text, onto
    )

  def direction(
    self, params: Tree, extras: Tree, batch: Mapping[str, Any], key: Array, step: Array | int = 0
  ) -> tuple[Tree, methods.Metrics]:
    """What an optimiser takes for a gradient, like `params`; and scalars to log.

    `key` is the same at every step: the random numbers of a step follow from it and `step`, which
    counts 0, 1, ... and may be traced.

    Raises:
      ValueError: a stream is missing or of another shape, or `apply` gives no noise.
    """
    draws = self.draw(extras, batch, key, step)
    grads, metrics = self.gradients(params, extras, draws)
    direction, combined = self.combine(params, extras, grads)
    return direction, metrics | combined

  def draw(self, extras: Tree, batch: Mapping[str, Any], key: Array, step: Array | int = 0) -> Any:
    """All random numbers of a step beside its rows; every leaf leads with the batch axis."""
    rows = _batch(self.method, batch)
    return self.method.draw(self.process, rows, jax.random.fold_in(key, step), extras, step)

  def gradients(
    self, params: Tree, extras: Tree, draws: Any
  ) -> tuple[tuple[Tree, ...], methods.Metrics]:
    """The K gradients on the draws, or on some rows of them: average those before `combine`."""
    return self.method.gradients(_Checked(self.apply), params, self.process, draws, extras)

  def combine(
    self, params: Tree, extras: Tree, grads: tuple[Tree, ...]
  ) -> tuple[Tree, methods.Metrics]:
    """One direction from the K gradients of the whole batch."""
    return methods.direction(self.method, params, grads, extras)

  def settle(self, params: Tree, extras: Tree, step: Array | int = 0) -> tuple[Tree, Tree]:
    """What few methods change after the update of step 0, 1, ...; the others nothing."""
    return self.method.settle(params, extras, jnp.asarray(step))


def eps_fn(apply: Apply, params: Tree, guidance: float = 0.0) -> EpsFn:
  """The network with its parameters bound, as `sample` and `measure` take it.

  `guidance` is w in (1 + w) eps_c - w eps_null: classifier-free guidance, for a network to which
  the condition -1 (`NULL`) means none.
  """
  return guided(jax.tree_util.Partial(_Checked(apply), params), guidance)


def over_devices(eps_fn: EpsFn) -> EpsFn:
  """The same noise predictor with its rows over all devices of this process.

  Each device gets the parameters; a batch that does not divide is evaluated by each of them. A CPU
  is one device unless JAX_NUM_CPU_DEVICES says otherwise: a device a core draws faster.
  """
  return sharding.over_devices(_partial(eps_fn))


def sample(
  eps_fn: EpsFn,
  process: Diffusion,
  key: Shaped[Array, "..."],
  shape: Sequence[int],
  c: Array | np.ndarray | None = None,
  *,
  sampler: str = "ddim",
  steps: int = 50,
  options: sampling.Options = sampling.DEFAULT,
) -> Float[Array, "B H W C"]:
  """Images of `shape` [B, H, W, C], in [-1, 1]; the same key starts from the same noise.

  The samplers are ddpm, ddim, plms and dpm (DPM-Solver++ 2M). The last two clip nothing, so that
  values may lie a little outside. `options` are what a model's scheduler says of them, like
  `load_pipeline(...).sampler`: latents are never clipped.

  Raises:
    ValueError: no such sampler, or steps outside 1..T.
  """
  k_x, k_steps = jax.random.split(key)
  x_T = jax.random.normal(k_x, tuple(shape))
  made = _partial(eps_fn)
  return sampling.sample(
    made, process, k_steps, x_T, c, sampler=sampler, steps=steps, options=options
  )


def measure(
  metrics: Sequence[str],
  eps_fn: EpsFn,
  process: Diffusion,
  *,
  reference: data.Records | Pictures,
  target: Pictures | None = None,
  concept: data.Concept | None = None,
  c: np.ndarray | None = None,
  samples: int = 64,
  sampler: str = "ddim",
  steps: int = 50,
  seed: int = 0,
  weights: str = "raw",
  split: evals.Split | None = None,
  before: EpsFn | None = None,
  **options: Any,
) -> dict[str, evals.Value]:
  """Metrics of a noise predictor by name: {name: (value, 95% interval, identity)}.

  `target` are the pictures to forget, `reference` those that samples should look like; all are of
  one size. Of a conditional model, c are the conditions of the samples in turn, `concept` is the
  class or style to forget, and `reference` are `Records`, which say the classes. `options` are the
  fields of `evals.Options`. `weights` says in the identity which parameters: raw or ema. `split`
  has the records for membership attacks, and `before` is the model before it was changed.

  Raises:
    ValueError: no such metric or option, or a metric that lacks something, like a weights file.
  """
  chosen = errors.build(evals.Options, "measure", options)
  for name in metrics:
    evals.check(name, chosen)
  if samples < 1:
    raise ValueError(f"samples is {samples}; use at least 1")
  records, predictor = _records(reference), _partial(eps_fn)
  shape = records.image.shape[1:]
  told = None if c is None else np.asarray(c)[np.arange(samples) % len(c)]
  how = {"sampler": sampler, "steps": steps}
  scale = "none" if told is None else f"{scale_of(predictor):g}"
  task = evals.Task(
    process=process,
    target=np.empty((0, *shape), np.float32) if target is None else _floats(target),
    reference=records,
    classes=records.classes,
    samples=_batches(predictor, process, seed, (samples, *shape), told, how),
    identity=evals.identity(**how, n=samples, guidance=scale, weights=weights, seed=seed),
    options=chosen,
    rng=jax.random.key(seed),
    c=told,
    concept=concept,
    vocabulary=records.vocabulary,
    split=split,
    before=None if before is None else lambda: _partial(before),
  )
  return {k: v for name in metrics for k, v in evals.metric(name)(predictor, task).items()}


def load_pretrained(origin: str | pathlib.Path) -> tuple[Any, Tree, Diffusion]:
  """(net, params, process) of a folder in diffusers' layout, assets:NAME or hub:OWNER/NAME.

  `process.predictor(net.apply)` is an `apply` of this module. The process is DDPM's linear one
  where the folder has no scheduler_config.json.

  Raises:
    ValueError: no such folder, or a model that is not one of `jaxunlearn.models`.
  """
  folder = layout.locate(str(origin))
  if (folder / "checkpoints").is_dir():
    raise ValueError(
      f"{folder} is a run; export it first: python -m jaxunlearn.export --run={folder} --out=FOLDER"
    )
  if layout.is_text_to_image(folder):
    raise ValueError(f"{folder} is a text-to-image model; take it whole, by load_pipeline")
  model, process = pretrained.read_config(folder)
  net = models.make(**model)
  params = pretrained.load(folder, models.shapes(net))
  return net, jax.tree.map(jnp.asarray, params), Diffusion(**process)


def load_pipeline(origin: str | pathlib.Path) -> stable_diffusion.Pipeline:
  """A whole text-to-image model: a folder as StableDiffusionPipeline writes it, or hub:OWNER/NAME.

  Raises:
    ValueError: no such folder, a part that is missing, or one that does not fit the others.
  """
  return stable_diffusion.load(layout.locate(str(origin)))


def save_pipeline(folder: str | pathlib.Path, model: stable_diffusion.Pipeline) -> None:
  """Writes the model as a folder that `load_pipeline` and diffusers' StableDiffusionPipeline read.

  `dataclasses.replace(model, params={**model.params, "unet": params})` is it with other weights.
  """
  stable_diffusion.save(pathlib.Path(folder), model)


def save_pretrained(folder: str | pathlib.Path, net: Any, params: Tree, process: Diffusion) -> None:
  """Writes a network of `jaxunlearn.models` as a folder that `load_pretrained` and diffusers read.

  Raises:
    ValueError: a network that diffusers' layout has no place for.
  """
  if not isinstance(net, unet.Net | uvit.Net):
    raise ValueError(
      f"net is a {type(net).__name__}; diffusers' layout holds networks of jaxunlearn.models, so "
      "save the parameters of other networks with their own library"
    )
  pretrained.save(pathlib.Path(folder), net, params, process)


@dataclasses.dataclass(frozen=True)
class _Checked:
  """`apply`, whose c may be left out, and which is held to the shape of noise."""

  apply: Apply

  def __call__(self, params: Tree, x_t: Array, t: Array, c: Array | None = None) -> Array:
    eps = self.apply(params, x_t, t, c)
    if getattr(eps, "shape", None) != x_t.shape:
      what = f"an array {eps.shape}" if hasattr(eps, "shape") else f"a {type(eps).__name__}"
      raise ValueError(f"apply gives {what} for images {x_t.shape}; return noise of their shape")
    return eps


class _Whole(dict[str, Rows]):
  """All records of some streams, numbered from 0."""

  def __init__(self, method: methods.Objective, given: Mapping[str, Any]):
    self._method = method
    read = [name for name in method.streams if name in given]
    super().__init__({name: _rows(method, name, _numbered(given[name])) for name in read})

  def __missing__(self, name: str) -> Rows:
    raise ValueError(
      f"method {_name(self._method)} reads the whole stream {name!r} before its first step; call "
      f"start(params, data={{{name!r}: images, ...}}, key=key)"
    )


def _batch(method: methods.Objective, given: Mapping[str, Any]) -> dict[str, Rows]:
  """The rows of each stream of the method."""
  for name in method.streams:
    if name not in given:
      raise ValueError(
        f"method {_name(method)} reads stream {name!r} and the batch has {', '.join(given)}; add "
        f"batch[{name!r}], images [B, H, W, C]"
      )
  rows = {name: _rows(method, name, given[name]) for name in method.streams}
  shapes = {name: part.image.shape for name, part in rows.items()}
  if len(set(shapes.values())) > 1:
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(f"the streams of a batch differ: {listed}; give as many images of one size")
  if len({part.c is None for part in rows.values()}) > 1:
    raise ValueError(
      "some streams of the batch have conditions; give Rows(images, c) of all, or none"
    )
  return jax.tree.map(jnp.asarray, rows)


def _rows(method: methods.Objective, name: str, given: Any) -> Rows:
  """The rows of one stream, with all that the method needs of them."""
  rows = _as_rows(given)
  if rows.image.ndim != 4 or not jnp.issubdtype(rows.image.dtype, jnp.floating):
    raise ValueError(
      f"images of stream {name!r} are {rows.image.dtype} {rows.image.shape}; give floats "
      "[B, H, W, C] in [-1, 1], as jaxunlearn.to_model makes of pixels"
    )
  own = {"to": "to" in method.needs, "index": method.numbered} if name == "a" else {}
  needs = [field for field, needed in {"c": "c" in method.needs, **own}.items() if needed]
  if missing := [field for field in needs if getattr(rows, field) is None]:
    asked = ", ".join(f"{field}={field}" for field in needs)
    raise ValueError(
      f"method {_name(method)} needs {' and '.join(missing)} of stream {name!r}; give "
      f"Rows(images, {asked})"
    )
  return rows


def _as_rows(given: Any) -> Rows:
  return given if isinstance(given, Rows) else Rows(given)


def _numbered(given: Any) -> Rows:
  rows = _as_rows(given)
  return rows._replace(index=np.arange(len(rows.image), dtype=np.int32))


def _name(method: methods.Objective) -> str:
  return type(method).__module__.rpartition(".")[2]


def _partial(eps_fn: EpsFn) -> EpsFn:
  """A pytree, which passes into jitted functions."""
  return eps_fn if isinstance(eps_fn, jax.tree_util.Partial) else jax.tree_util.Partial(eps_fn)


def _batches(
  eps_fn: EpsFn,
  process: Diffusion,
  seed: int,
  shape: tuple[int, ...],
  c: np.ndarray | None,
  how: Mapping[str, Any],
) -> np.ndarray:
  """Samples of that shape, BATCH at a time."""
  made = []
  for i, start in enumerate(range(0, shape[0], BATCH)):
    count = min(BATCH, shape[0] - start)
    rng = jax.random.fold_in(jax.random.key(seed), i)
    part = None if c is None else c[start : start + count]
    made.append(sample(eps_fn, process, rng, (count, *shape[1:]), part, **how))
  return np.concatenate(made)


def _records(pictures: data.Records | Pictures) -> data.Records:
  """Pictures as records of one class; records as they are."""
  if isinstance(pictures, data.Records):
    return pictures
  pixels = np.asarray(pictures)
  pixels = pixels if pixels.dtype == np.uint8 else data.to_pixels(pixels)
  ids = np.arange(len(pixels)).astype(str)
  return data.Records(ids, pixels, np.zeros(len(pixels), np.int32), ("all",))


def _floats(pictures: Pictures) -> np.ndarray:
  """float32 in [-1, 1] of either kind of pictures."""
  array = np.asarray(pictures)
  return data.to_model(array) if array.dtype == np.uint8 else array.astype(np.float32)
