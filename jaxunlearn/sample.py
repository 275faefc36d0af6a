"""Samples of a model, as one picture to look at.

    jaxunlearn sample --from=FOLDER --prompt="a whale emoji in noto style" --n=8 --out=grid.png
    jaxunlearn sample --from=runs/dimum --label=Trouser --label=Coat --n=8 --out=grid.png

--from takes a run's working directory, a folder in diffusers' layout (a UNet, or a whole
StableDiffusionPipeline), assets:NAME or hub:OWNER/NAME. --prompt is for text-to-image models,
--label and --style for conditional ones; each may be given several times, and has a row of the
picture. Sampler, steps and guidance are the scheduler's, 50, and 7.5 for prompts, unless they are
given. The module is `python -m jaxunlearn.sample`.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from jaxunlearn.commands import flag_help
from jaxunlearn.errors import BAD_INPUT
from jaxunlearn.inputs import ranges

COMPILING = "compile"  # what the bar says until the first call is done
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

STEPS, SCALE = 50, 7.5
_TEXT, _MANY = flags.DEFINE_string, flags.DEFINE_multi_string
_WHOLE, _REAL = flags.DEFINE_integer, flags.DEFINE_float
_FLAGS = {  # field of Asked -> its flag
  "origin": _TEXT("from", None, "A run, a folder of weights, assets:NAME or hub:OWNER/NAME."),
  "out": _TEXT("out", None, "The picture to write, a .png."),
  "prompts": _MANY("prompt", [], "What to draw; may be given several times."),
  "labels": _MANY("label", [], "A class, by name or number; may be given several times."),
  "styles": _MANY("style", [], "A style, by name or number; may be given several times."),
  "n": _WHOLE("n", 8, "Samples of each prompt, or of each label and style."),
  "batch": _WHOLE("batch", 8, "Samples at a time."),
  "steps": _WHOLE("steps", STEPS, "Steps of the sampler."),
  "sampler": _TEXT("sampler", "", "One of this project's; else the one of the model's scheduler."),
  "scale": _REAL("scale", None, "s in eps_null + s (eps_c - eps_null). For prompts, else: 7.5."),
  "guidance": _REAL("guidance", None, "w = s - 1, as in config.eval.guidance; not both."),
  "seed": _WHOLE("seed", 0, "Of the noise."),
}


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is to be drawn: see the flags."""

  origin: str
  prompts: Sequence[str] = ()
  labels: Sequence[str] = ()
  styles: Sequence[str] = ()
  n: ranges.Count = 8
  batch: ranges.Count = 8
  steps: ranges.Count = STEPS
  sampler: str = ""
  scale: float | None = None
  guidance: float | None = None
  seed: ranges.Seed = 0

  def __post_init__(self) -> None:
    ranges.check(self)
    if self.scale is not None and self.guidance is not None:
      raise ValueError("--scale and --guidance say the same thing, s = w + 1; give one of them")

  def scale_or(self, usual: float) -> float:
    """s: what was asked for in either way, or the model's usual one."""
    if self.guidance is not None:
      return self.guidance + 1
    return usual if self.scale is None else self.scale


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model as it is to be sampled."""

  eps_fn: Any  # before guidance
  process: Any
  options: Any  # of the sampler
  sampler: str
  scale: float  # s, where none is asked for
  shape: tuple[int, ...]  # of what the network sees
  c: Any  # [rows] or [rows, n] conditions, or None
  decode: Callable[[Any], Any]  # what the network makes -> pictures


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]!r} is not a flag; write --from=MODEL --out=grid.png")
  from jaxunlearn import checkpoint  # importing JAX is slow; --help is not

  try:
    given: dict[str, Any] = {name: flag.value for name, flag in _FLAGS.items()}
    out = given.pop("out")
    if out is None or given["origin"] is None:
      raise ValueError("--from or --out is missing; try --from=assets:pretrain_mnist --out=it.png")
    print(write(Asked(**given), pathlib.Path(out)))
  except (ValueError, OSError, checkpoint.Damaged) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def write(asked: Asked, out: pathlib.Path) -> str:
  """Makes the samples and writes them as one picture, a row for each prompt; returns what it did.

  Raises:
    ValueError: no such model, one that does not take what was asked, or `out` is no .png.
  """
  from jaxunlearn.reports import pictures

  if out.suffix != ".png":
    raise ValueError(f"--out is {str(out)!r}; use a name that ends in .png")
  subject = find(asked)
  images = draw(subject, asked)
  out.parent.mkdir(parents=True, exist_ok=True)
  rows = 1 if subject.c is None else len(subject.c)
  pictures.write_grid(out, images, asked.n if rows > 1 else min(asked.n, pictures.COLUMNS))
  sampler = asked.sampler or subject.sampler
  return (
    f"wrote {len(images)} samples of {asked.origin} by {sampler}, {asked.steps} steps, to {out}"
  )


def draw(subject: Subject, asked: Asked) -> Any:
  """n pictures for each row of conditions, those of a row one after the other: [N, H, W, C]."""
  import jax
  import numpy as np
  from tqdm import tqdm

  from jaxunlearn.diffusion import guidance, sampling

  c = None if subject.c is None else np.repeat(subject.c, asked.n, axis=0)
  count, size = asked.n if c is None else len(c), asked.batch
  eps_fn = subject.eps_fn
  if c is not None:
    eps_fn = guidance.guided(eps_fn, asked.scale_or(subject.scale) - 1)
  parts = []
  with tqdm(total=-(-count // size) * asked.steps, desc=COMPILING) as bar:
    for i in range(-(-count // size)):
      rows = np.arange(i * size, (i + 1) * size) % count  # the last is filled up
      k_x, k_steps = jax.random.split(jax.random.fold_in(jax.random.key(asked.seed), i))
      made = sampling.sample(
        jax.tree_util.Partial(functools.partial(_ticking, bar), eps_fn),
        subject.process,
        k_steps,
        jax.random.normal(k_x, (size, *subject.shape)),
        None if c is None else c[rows],
        sampler=asked.sampler or subject.sampler,
        steps=asked.steps,
        options=subject.options,
      )
      parts.append(np.asarray(made))
  return subject.decode(np.concatenate(parts)[:count])


def _ticking(bar: Any, eps_fn: Any, x: Any, t: Any, c: Any = None) -> Any:
  """The predictor, which moves the bar on at each call."""
  import jax

  def tick() -> None:
    bar.set_description("sample", refresh=False)
    bar.update()

  jax.debug.callback(tick)
  return eps_fn(x, t, c)


def find(asked: Asked) -> Subject:
  """The model; raises ValueError where there is none, or it does not take what was asked."""
  from jaxunlearn.weights import layout

  if asked.origin.endswith(FILES):
    raise ValueError(
      f"--from is the file {asked.origin}; give a folder in diffusers' layout. diffusers makes one "
      "of a single file: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
    )
  folder = layout.locate(asked.origin)
  if layout.is_text_to_image(folder):
    return _of_pipeline(folder, asked)
  if asked.prompts:
    raise ValueError(
      f"{asked.origin} is no text-to-image model and was given a prompt; use --label"
    )
  return (_of_run if (folder / "checkpoints").is_dir() else _of_folder)(folder, asked)


def _of_pipeline(folder: pathlib.Path, asked: Asked) -> Subject:
  """A text-to-image model with the prompts asked for, encoded once."""
  import jax
  import numpy as np

  from jaxunlearn import latents
  from jaxunlearn.weights import scheduler_config, stable_diffusion

  if asked.labels or asked.styles:
    raise ValueError("a text-to-image model was given a label or a style; use --prompt")
  if not asked.prompts:
    raise ValueError("--prompt is missing; say what to draw")
  model = stable_diffusion.load(folder)
  params = {"unet": model.params["unet"], "states": model.states(asked.prompts)}
  net = model.net(len(asked.prompts))
  sampler, options = scheduler_config.sampler_of(model.sampler, model.scheduler)
  return Subject(
    eps_fn=jax.tree_util.Partial(net.apply, jax.tree.map(jax.numpy.asarray, params)),
    process=model.process,
    options=options,
    sampler=sampler,
    scale=SCALE,
    shape=net.image_shape,
    c=np.arange(len(asked.prompts), dtype=np.int32),
    decode=latents.Codec(model.vae, model.params["vae"]).decode,
  )


def _of_run(folder: pathlib.Path, asked: Asked) -> Subject:
  """A run's newest weights; its data say the names of classes and styles."""
  from jaxunlearn import data
  from jaxunlearn.weights import of_run

  config, net, params, _, _ = of_run.read(folder)
  by_number = all(value.isdigit() for value in (*asked.labels, *asked.styles))
  names = () if by_number else data.load(**config["data"])[0].vocabulary
  rest = config.get("scheduler", {})
  return _of_net(net, params, config["process"], config.get("sampler", {}), rest, names, asked)


def _of_folder(folder: pathlib.Path, asked: Asked) -> Subject:
  """Weights in diffusers' layout, whose classes have numbers alone."""
  from jaxunlearn import library
  from jaxunlearn.weights import pretrained

  net, params, process = library.load_pretrained(folder)
  found = pretrained.read_scheduler(folder)
  sampler, rest = (found.sampler, found.rest) if found else ({}, {})
  return _of_net(net, params, dataclasses.asdict(process), sampler, rest, (), asked)


def _of_net(
  net: Any,
  params: Any,
  process: Mapping[str, Any],
  sampler: Mapping[str, Any],
  scheduler: Mapping[str, Any],
  names: Sequence[Sequence[str]],
  asked: Asked,
) -> Subject:
  """A model of pixels."""
  import jax

  from jaxunlearn.diffusion import Diffusion, sampling
  from jaxunlearn.weights import scheduler_config

  name, options = scheduler_config.sampler_of(sampling.Options.of(sampler), scheduler)
  return Subject(
    eps_fn=jax.tree_util.Partial(net.apply, params),
    process=Diffusion(**process),
    options=options,
    sampler=name,
    scale=1.0,
    shape=net.image_shape,
    c=_conditions(tuple(net.classes), names, asked),
    decode=lambda made: made,
  )


def _conditions(counts: tuple[int, ...], names: Sequence[Sequence[str]], asked: Asked) -> Any:
  """A row of conditions for each label and style, all of them where none is named."""
  import numpy as np

  given = (asked.labels, asked.styles)
  for what, values, needed in zip(("label", "style"), given, (1, 2), strict=True):
    if values and len(counts) < needed:
      raise ValueError(f"the model knows no {what} and was given one; leave --{what} out")
  if not counts:
    return None
  columns = [
    [_number(value, counts[i], tuple(names[i]) if names else ()) for value in values]
    or list(range(counts[i]))
    for i, values in enumerate(given[: len(counts)])
  ]
  rows = np.stack(np.meshgrid(*columns, indexing="ij"), -1).reshape(-1, len(counts))
  return rows.astype(np.int32)[..., 0 if len(counts) == 1 else slice(None)]


def _number(value: str, count: int, names: tuple[str, ...]) -> int:
  """The number of a class or a style, given by that or by its name."""
  if value in names:
    return names.index(value)
  if not value.isdigit() or int(value) >= count:
    said = ", ".join(names) if names else f"0 to {count - 1}"
    raise ValueError(f"there is no class or style {value!r}; use one of: {said}")
  return int(value)


def start() -> None:
  flag_help.answer(sys.argv, __doc__, list(_FLAGS.values()))
  app.call_after_init(lambda: logging.set_verbosity(logging.WARNING))
  app.run(main)


if __name__ == "__main__":
  start()
