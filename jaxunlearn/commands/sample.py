"""Samples of a model, as one picture to look at.

    jaxunlearn sample --from=FOLDER --prompt="a whale emoji in noto style" --n=8 --out=grid.png
    jaxunlearn sample --from=runs/dimum --label=Trouser --label=Coat --n=8 --out=grid.png
    jaxunlearn sample --from=runs/cdm --sources=animals,food --prompt="a whale" --out=grid.png

--from takes a run's working directory, a folder in diffusers' layout (a UNet, or a whole
StableDiffusionPipeline), assets:NAME or hub:OWNER/NAME. --prompt is for text-to-image models,
--label and --style for conditional ones; each may be given several times, and has a row of the
picture. Unless you name them, the sampler is the one of the model's scheduler, the steps are 50,
and the scale of prompts is 7.5. The module is `python -m jaxunlearn.sample`.

Of a compartmentalised run no file of a source that is not asked for is opened, and --policy is
checked before; policy.yaml in the run binds without being named.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from jaxunlearn import data, latents, library, prompts
from jaxunlearn.cdm import policy, serve
from jaxunlearn.commands import guard
from jaxunlearn.diffusion import Diffusion, EpsFn, guidance, sampling
from jaxunlearn.diffusion.held import Held
from jaxunlearn.inputs import ranges
from jaxunlearn.mesh import cores
from jaxunlearn.models import text_to_image
from jaxunlearn.reports import pictures, tifa
from jaxunlearn.weights import (
  layout,
  lora,
  of_run,
  pretrained,
  scheduler_config,
  stable_diffusion,
)

COMPILING = "compile"  # what the bar says until the first call is done
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
STEPS, SCALE = 50, 7.5


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
  lora: str = ""
  scale: float | None = None
  guidance: float | None = None
  seed: ranges.Seed = 0
  sources: Sequence[str] = ()  # of a compartmentalised model; (): all that one may use
  mode: str = ""  # of their composition; "": soft
  policy: str = ""  # a file; "": the run's own, if any
  who: str = ""  # one's name in the policy

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

  eps_fn: EpsFn  # before guidance
  process: Diffusion
  options: sampling.Options
  sampler: str
  scale: float  # s, where none is asked for
  shape: tuple[int, ...]  # of what the network sees
  c: Any  # [rows] or [rows, n] conditions, or None
  decode: Callable[[Any], Any]  # what the network makes -> pictures
  within: Callable[[float], EpsFn] | None = None  # w -> the predictor, where guidance is inside it

  def guided(self, w: float) -> EpsFn:
    return self.within(w) if self.within else guidance.guided(self.eps_fn, w)


def write(asked: Asked, out: pathlib.Path, folder: pathlib.Path | None = None) -> str:
  """Makes the samples and writes them as one picture, a row for each prompt; returns what it did.

  In the folder, if any, stands each picture of a prompt by itself, for TIFA's scripts.

  Raises:
    ValueError: no such model, one that does not take what was asked, or `out` is no .png.
  """
  if out.suffix != ".png":
    raise ValueError(f"--out is {str(out)!r}; use a name that ends in .png")
  if folder and not asked.prompts:
    raise ValueError("--tifa takes pictures of prompts; name some with --prompt")
  subject = find(asked)
  images = draw(subject, asked)
  out.parent.mkdir(parents=True, exist_ok=True)
  rows = 1 if subject.c is None else len(subject.c)
  pictures.write_grid(out, images, asked.n if rows > 1 else min(asked.n, pictures.COLUMNS))
  if folder:
    tifa.write(folder, np.repeat(asked.prompts, asked.n).tolist(), images)
  made = f"{len(images)} samples of {asked.origin} by {subject.sampler}"
  return f"wrote {made}, {asked.steps} steps, to {out}"


def draw(subject: Subject, asked: Asked) -> Float[np.ndarray, "N H W C"]:
  """n pictures for each row of conditions, those of a row one after the other."""
  c = None if subject.c is None else np.repeat(subject.c, asked.n, axis=0)
  count, size = asked.n if c is None else len(c), asked.batch
  eps_fn = subject.guided(0.0 if c is None else asked.scale_or(subject.scale) - 1)
  parts, batches = [], -(-count // size)
  with tqdm(total=batches * sampling.calls(subject.sampler, asked.steps), desc=COMPILING) as bar:
    ticking = _ticked(bar, eps_fn)
    for i in range(batches):
      rows = np.arange(i * size, (i + 1) * size) % count  # the last is filled up
      k_x, k_steps = jax.random.split(jax.random.fold_in(jax.random.key(asked.seed), i))
      made = sampling.sample(
        ticking,
        subject.process,
        k_steps,
        jax.random.normal(k_x, (size, *subject.shape)),
        None if c is None else c[rows],
        sampler=subject.sampler,
        steps=asked.steps,
        options=subject.options,
      )
      parts.append(np.asarray(made))
  return subject.decode(np.concatenate(parts)[:count])


def _ticked(bar: Any, eps_fn: Any) -> Any:
  """The predictor, which moves the bar on at each call."""
  tick = functools.partial(_ticking, bar)
  if isinstance(eps_fn, Held):
    return dataclasses.replace(eps_fn, predict=jax.tree_util.Partial(tick, eps_fn.predict))
  return jax.tree_util.Partial(tick, eps_fn)


def _ticking(bar: Any, eps_fn: Any, *at: Any) -> Any:

  def tick() -> None:
    bar.set_description("sample", refresh=False)
    bar.update()

  jax.debug.callback(tick)
  return eps_fn(*at)


def find(asked: Asked) -> Subject:
  """The model; raises ValueError where there is none, or it does not take what was asked."""
  if asked.origin.endswith(FILES):
    raise ValueError(
      f"--from is the file {asked.origin}; give a folder in diffusers' layout. jaxunlearn convert "
      "makes one of a single file"
    )
  rights = policy.find(pathlib.Path(asked.origin).expanduser(), asked.policy)
  names = policy.allowed(rights, asked.who, asked.sources)  # before anything of the model is read
  folder = layout.locate(asked.origin)
  if serve.is_one(folder):
    return _of_sources(folder, names, asked)
  if asked.sources or asked.mode:
    raise ValueError(f"{asked.origin} has no sources; leave --sources and --mode out")
  if layout.is_text_to_image(folder):
    return _of_pipeline(stable_diffusion.load(folder), asked)
  run = of_run.read(folder) if (folder / "checkpoints").is_dir() else None
  if run and isinstance(run.net, text_to_image.Net):
    return _of_pipeline(_with_token(stable_diffusion.of_newest(run), run), asked)
  if asked.prompts or asked.lora:
    raise ValueError(
      f"{asked.origin} is no text-to-image model and was given a prompt or a LoRA; use --label"
    )
  return _of_run(run, asked) if run else _of_folder(folder, asked)


def _with_token(model: stable_diffusion.Pipeline, run: of_run.Newest) -> stable_diffusion.Pipeline:
  """The model with the token that the run learned, if it did."""
  if "token" not in run.params:
    return model
  new = prompts.Options(**run.config["prompts"]).tokens
  return stable_diffusion.with_token(model, new, run.params["token"])


def _of_pipeline(model: stable_diffusion.Pipeline, asked: Asked) -> Subject:
  """A text-to-image model with the prompts asked for, encoded once."""
  if asked.lora:
    moved = lora.merge({"unet": model.params["unet"]}, pathlib.Path(asked.lora))
    model = dataclasses.replace(model, params={**model.params, **moved})
  if asked.labels or asked.styles:
    raise ValueError("a text-to-image model was given a label or a style; use --prompt")
  if not asked.prompts:
    raise ValueError("--prompt is missing; say what to draw")
  sampler, options = _sampler(asked, model.sampler, model.scheduler)
  return Subject(
    eps_fn=cores.spread(model.eps_fn(asked.prompts)),
    process=model.process,
    options=options,
    sampler=sampler,
    scale=SCALE,
    shape=model.unet.image_shape,
    c=np.arange(len(asked.prompts), dtype=np.int32),
    decode=model.codec.decode,
  )


def _of_run(run: of_run.Newest, asked: Asked) -> Subject:
  """A run's newest weights; its data say the names of classes and styles."""
  config, net, params, _, _ = run
  by_number = all(value.isdigit() for value in (*asked.labels, *asked.styles))
  names = () if by_number else data.load(**config["data"])[0].vocabulary
  rest = config.get("scheduler", {})
  return _of_net(net, params, config["process"], config.get("sampler", {}), rest, names, asked)


def _of_sources(folder: pathlib.Path, names: Sequence[str], asked: Asked) -> Subject:
  """A composition of sources; classes and styles have numbers alone, since no data is read."""
  text = serve.takes_prompts(folder)
  if text and not asked.prompts:
    raise ValueError("--prompt is missing; say what to draw")
  if (asked.prompts and not text) or asked.lora:
    raise ValueError(f"{asked.origin} takes no prompt or no LoRA here; leave it out")
  made = serve.read(folder, names, asked.prompts)
  rest = made.config.get("scheduler", {})
  sampler, options = _sampler(asked, sampling.Options.of(made.config.get("sampler", {})), rest)
  prompts = np.arange(len(asked.prompts), dtype=np.int32)
  return Subject(
    eps_fn=made.eps_fn(asked.mode or "soft"),
    process=made.process,
    options=options,
    sampler=sampler,
    scale=SCALE if text else 1.0,
    shape=made.net.image_shape,
    c=prompts if text else _conditions(tuple(made.net.classes), (), asked),
    decode=made.codec.decode,
    within=functools.partial(made.eps_fn, asked.mode or "soft"),
  )


def _of_folder(folder: pathlib.Path, asked: Asked) -> Subject:
  """Weights in diffusers' layout, whose classes have numbers alone."""
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
  made = Diffusion(**process)
  name, options = _sampler(asked, sampling.Options.of(sampler), scheduler)
  eps_fn = jax.tree_util.Partial(made.predictor(net.apply), jax.tree.map(jnp.asarray, params))
  return Subject(
    eps_fn=cores.spread(eps_fn),
    process=made,
    options=options,
    sampler=name,
    scale=1.0,
    shape=net.image_shape,
    c=_conditions(tuple(net.classes), names, asked),
    decode=latents.PIXELS.decode,
  )


def _sampler(asked: Asked, options: Any, scheduler: Mapping[str, Any]) -> tuple[str, Any]:
  """The sampler asked for, or the one that walks as the model's scheduler does; its options."""
  if asked.sampler:
    return asked.sampler, options
  return scheduler_config.sampler_of(options, scheduler)


def _conditions(counts: tuple[int, ...], names: Sequence[Sequence[str]], asked: Asked) -> Any:
  """A row of conditions for each label and style, all of them where none is named."""
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


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    prog="jaxunlearn sample",
    usage="jaxunlearn sample --from=MODEL --out=PNG [FLAGS]",
    description=__doc__,
    formatter_class=described,
  )
  add = parser.add_argument
  add("--from", dest="origin", required=True, help="a run, a folder, assets:NAME or hub:OWNER/NAME")
  add("--out", type=pathlib.Path, required=True, help="the picture to write, a .png")
  add("--prompt", dest="prompts", action="append", default=[], help="what to draw")
  add("--label", dest="labels", action="append", default=[], help="a class, by name or number")
  add("--style", dest="styles", action="append", default=[], help="a style, by name or number")
  add("--n", type=int, default=8, help="samples of each prompt, or of each label and style")
  add("--batch", type=int, default=8, help="samples at a time")
  add("--steps", type=int, default=STEPS, help=f"of the sampler; {STEPS}")
  add("--sampler", default="", help=f"one of {', '.join(sampling.SAMPLERS)}; else the scheduler's")
  add("--lora", default="", help="a LoRA of its UNet, .safetensors by PEFT's names")
  add("--scale", type=float, help=f"s in eps_null + s (eps_c - eps_null); of prompts {SCALE}")
  add("--guidance", type=float, help="w = s - 1, as config.eval.guidance has it")
  add("--seed", type=int, default=0, help="of the noise")
  add("--sources", type=_listed, default=(), help="of a CDM, between commas; else all")
  add("--tifa", type=pathlib.Path, help="a folder of pictures for TIFA's scripts")
  add("--mode", default="", help="soft, topK, naive, step or trajectory")
  add("--policy", default="", help="a file: who may use which source")
  add("--as", dest="who", default="", help="your name in the policy")
  return parser.parse_args(argv)


def _listed(text: str) -> tuple[str, ...]:
  return tuple(filter(None, text.split(",")))


def start() -> int:
  given = vars(parse())
  out, folder = given.pop("out"), given.pop("tifa")
  cores.as_devices(given["batch"])
  return guard.guarded(lambda: print(write(Asked(**given), out, folder)))
