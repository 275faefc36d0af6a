"""Weights in diffusers' layout: a folder with config.json and a weights file, both ways.

The mapping is a rule, not a table: `down_blocks_0/resnets_1/conv1/kernel` [kh, kw, I, O] is
`down_blocks.0.resnets.1.conv1.weight` [O, I, kh, kw]; linear kernels are transposed; the scale of
a norm is its weight.
"""

import dataclasses
import json
import pathlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jaxunlearn import latents, models, prompts
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.models import unet, uvit
from jaxunlearn.weights import (
  arrays,
  diffusers_config,
  layout,
  pipeline_config,
  scheduler_config,
  tokenizer,
)
from jaxunlearn.weights.layout import CONFIG, PIPELINE, SCHEDULER, WEIGHTS

TEXT_TO_IMAGE = "text_to_image"
TEXT_PREFIX = "text_model."  # before the names of a text encoder's weights
NAME = "pretrained"  # the config.model.name that takes model and process from init_from

_LISTS = re.compile(
  r"\b(\w+_blocks|resnets|attentions|downsamplers|upsamplers|to_out|class_embedding|net|layers)"
  r"_(\d+)"
)
# HWIO -> OIHW, IO -> OI, by number of axes; a lone array of three stands as it is.
_TO_TORCH = {4: (3, 2, 0, 1), 3: (0, 1, 2), 2: (1, 0), 1: (0,)}
_WEIGHTS = ("kernel", "scale", "embedding")  # what PyTorch calls a weight; others keep their name
# What diffusers called the layers of attention at first; google/ddpm-* are stored so.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"\b(attentions\.\d+)\.({'|'.join(_OLD)})\b")
_PREFIXES = ("module.", "_orig_mod.", "unet.", "model.")  # of wrappers, before every name
_ADVICE = "set config.model to the checkpoint's architecture"


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
  """Our nested parameters as PyTorch's flat, named, OIHW state dict (NumPy)."""
  return {name: np.ascontiguousarray(view) for name, view in views(params).items()}


def views(params: Any) -> dict[str, np.ndarray]:
  """The same without a copy: views of our arrays, in PyTorch's order of axes."""
  return {
    _torch_name(path): np.asarray(leaf).transpose(_axes(path, leaf))
    for path, leaf in jax.tree.leaves_with_path(params)
  }


def from_state_dict(state: Mapping[str, np.ndarray], target: Any) -> Any:
  """The inverse of `to_state_dict`, into the structure of `target` (arrays or their shapes).

  A prefix that all names have from a wrapper (`module.`) is taken off. Each array is asked for
  once, and copied.

  Raises:
    ValueError: a weight is missing, left over, or of another shape.
  """
  state = _without_prefix(state)
  left = {_OLD_NAME.sub(lambda m: f"{m[1]}.{_OLD[m[2]]}", name): name for name in state}

  def take(path: Any, leaf: Any) -> np.ndarray:
    name, axes = _torch_name(path), _axes(path, leaf)
    if name not in left:
      raise ValueError(f"the weights have no {name!r}{_missing(name, left)}")
    value, shape = state[left.pop(name)], tuple(leaf.shape[i] for i in axes)
    if value.shape != shape:
      raise ValueError(
        f"{name!r} is {value.shape} in the weights and {shape} in the config's model; {_ADVICE}"
      )
    return arrays.aligned(value.transpose(np.argsort(axes)))

  params = jax.tree.map_with_path(take, target)
  if left:
    raise ValueError(
      f"the weights hold {len(left)} arrays that the config's model lacks, the first is "
      f"{min(left)!r}; {_ADVICE}"
    )
  return params


def _without_prefix(state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  shared = lambda prefix: state and all(name.startswith(prefix) for name in state)
  while prefix := next(filter(shared, _PREFIXES), None):
    state = arrays.renamed(state, {name: name.removeprefix(prefix) for name in state})
  return state


def _missing(name: str, names: Iterable[str]) -> str:
  """What to do about a name that is not there: something may stand before it."""
  if longer := next((other for other in names if other.endswith(f".{name}")), None):
    prefix = longer.removesuffix(name)
    return f" but {longer!r}; save the UNet's weights alone, without the prefix {prefix!r}"
  return f"; {_ADVICE}"


def _axes(path: Any, leaf: Any) -> tuple[int, ...]:
  """Where PyTorch has our axes; a table of embeddings stands as it is."""
  return (0, 1) if path[-1].key == "embedding" else _TO_TORCH[len(leaf.shape)]


def _torch_name(path: Any) -> str:
  *module, kind = (key.key for key in path)
  return module_name([*module, "weight" if kind in _WEIGHTS else kind])


def module_name(path: Sequence[str]) -> str:
  """PyTorch's name of a module, by the names in ours: `down_blocks.0.resnets.1`."""
  return _LISTS.sub(r"\1.\2", ".".join(path))


# Folders.


def save(
  folder: pathlib.Path,
  net: unet.Net | uvit.Net,
  params: Any,
  process: Diffusion,
  sampler: sampling.Options = sampling.DEFAULT,
  rest: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
  """Writes `folder` as diffusers' UNet2DModel and its pipeline `.from_pretrained` read it.

  `rest` is of the scheduler that the model came with, as `scheduler_config.read` gave it.

  With patch_size p > 1 it holds the UNet2DModel inside, which takes folded images: channel
  (i p + j) C + c of pixel (h, w) is channel c of the image's pixel (h p + i, w p + j). A
  conditional network, and a U-ViT, are not in diffusers: only this project reads its folder.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  contents = {
    CONFIG: diffusers_config.of_net(net),
    SCHEDULER: scheduler_config.write(process, sampler, rest),
    PIPELINE: scheduler_config.pipeline(rest),
  }
  if net.classes or contents[CONFIG]["_class_name"] != diffusers_config.UNET:
    del contents[PIPELINE]
  for name, content in contents.items():
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")
  arrays.write(folder / WEIGHTS, views(params))


def load(folder: pathlib.Path, target: Any) -> Any:
  """Parameters (NumPy) from a folder of diffusers' layout, into the structure of `target`.

  Raises:
    ValueError: no weights there, a damaged file, or weights of another architecture.
  """
  if "text_encoder" not in target:
    return from_state_dict(layout.state(folder), target)
  return {
    "unet": from_state_dict(layout.state(folder, "unet"), target["unet"]),
    "text_encoder": text_encoder(layout.state(folder, "text_encoder"), target["text_encoder"]),
  }


def text_encoder(state: Mapping[str, np.ndarray], target: Any) -> Any:
  """As `from_state_dict`, with or without the prefix; the places of tokens are no weights."""
  names = {name: name.removeprefix(TEXT_PREFIX) for name in state}
  names = {old: new for old, new in names.items() if new != "embeddings.position_ids"}
  return from_state_dict(arrays.renamed(state, names), target)


# Configs.


def read_config(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The fields of models.make(...) and of Diffusion that the weights of `folder` mean.

  The second is empty where the folder has no scheduler_config.json.

  Raises:
    ValueError: a file is missing or damaged, or holds a field that is not implemented.
  """
  path = layout.part(folder, "unet") / CONFIG
  if layout.is_text_to_image(folder):
    model = _text_to_image(folder)
  else:
    model = diffusers_config.model_fields(layout.read_json(path), path)
  found = read_scheduler(folder)
  return model, found.process if found else {}


def _text_to_image(folder: pathlib.Path) -> dict[str, Any]:
  """The fields of models.text_to_image.Net; how many prompts there are the data say."""
  paths = {name: folder / name / CONFIG for name in ("unet", "text_encoder")}
  if not paths["text_encoder"].is_file():
    raise ValueError(
      f"{layout.part(folder, 'unet') / CONFIG} is a {pipeline_config.UNET!r}, of a text-to-image "
      "model; give the whole folder: unet, vae, text_encoder, tokenizer and scheduler"
    )
  unet, text = (layout.read_json(path) for path in paths.values())
  words = tokenizer.load(folder / "tokenizer")
  return {
    "name": TEXT_TO_IMAGE,
    "unet": pipeline_config.read_unet(unet, paths["unet"]),
    "text": {
      **pipeline_config.read_text(text, paths["text_encoder"]),
      "end": words.id_of(tokenizer.END),
    },
  }


def read_scheduler(folder: pathlib.Path) -> scheduler_config.Scheduler | None:
  """What the scheduler says that the weights of `folder` came with; None where there is none.

  Raises:
    ValueError: the file is damaged, or holds a field that is not implemented.
  """
  path = layout.scheduler(folder)
  if not path:
    return None
  found = scheduler_config.read(layout.read_json(path), path)
  return scheduler_config.of_latents(found) if layout.is_text_to_image(folder) else found


class Described(NamedTuple):
  """What a folder says of its weights, as fields of a config."""

  model: dict[str, Any]
  process: dict[str, Any]
  sampler: dict[str, Any]
  rest: dict[str, Any]  # config.scheduler
  text: dict[str, dict[str, Any]]  # config.prompts and config.codec, of a text-to-image run


def adopt(config: ConfigDict) -> None:
  """Brings a config and what stands in init_from's folder together.

  A model named `pretrained` becomes that of config.json (its own dtype is kept) and the process
  that of the scheduler's; a model that is spelt out has to be the same function. What
  config.sampler leaves open is as the scheduler has it.

  Raises:
    ValueError: nothing to take the model from, or the weights mean another model or process.
  """
  described = _described(layout.locate(config.init_from)) if config.init_from else None
  _adopt_model(config, described)
  given, rest = (described.sampler, described.rest) if described else ({}, {})
  if config.model.get("name") == TEXT_TO_IMAGE:
    _adopt_text(config, described.text if described else {})
  with config.unlocked():
    for name, value in (dataclasses.asdict(sampling.DEFAULT) | given).items():
      if config.sampler[name] is None:
        config.sampler[name] = value
    config.scheduler = config.scheduler or rest


def _adopt_text(config: ConfigDict, given: Mapping[str, Mapping[str, Any]]) -> None:
  """Fills in whose tokenizer and autoencoder they are: those of init_from, if none are named."""
  for group, options, field in (
    ("prompts", prompts.Options(), "tokenizer"),
    ("codec", latents.Options(), "path"),
  ):
    with config.unlocked():
      own = dict(config.get(group, {}))
      fields = dataclasses.asdict(options) | own
      fields[field] = own.get(field) or given.get(group, {}).get(field) or config.init_from
      config[group] = fields
    if not fields[field]:
      raise ValueError(
        f"config.{group}.{field} is empty and so is init_from; name the model whose {group} it is"
      )


def _adopt_model(config: ConfigDict, described: Described | None) -> None:
  if config.model.get("name") != NAME:
    if described:
      _check_same(config, described.model, described.process)
    return
  if not described:
    raise ValueError(
      f"config.model is {NAME!r} and init_from {config.init_from!r} has no {CONFIG}; name weights "
      "in diffusers' layout, or a run"
    )
  if more := set(config.model) - {"name", "dtype"}:
    raise ValueError(f"config.model is {NAME!r} and sets {min(more)} too; drop one of them")
  if not described.process:
    logging.warning(
      "%s has no %s, and none lies beside it: the noise is taken to be config.process, %s",
      *(config.init_from, SCHEDULER, Diffusion(**config.process)),
    )
  own = dict(config.model)
  if described.model["name"] == TEXT_TO_IMAGE:
    own["unet"] = {**described.model["unet"], "dtype": own.pop("dtype", "float32")}
  with config.unlocked():
    config.model = {**described.model, **own, "name": described.model["name"]}
    config.process.update(described.process)


def _described(folder: pathlib.Path) -> Described | None:
  """What a run's config says, or what stands for it in diffusers' layout; None: nothing does."""
  path = layout.part(folder, "unet") / CONFIG
  if not path.is_file():
    return None
  if (folder / "checkpoints").is_dir():
    run = {"sampler": {}, "scheduler": {}, **layout.read_json(path)}
    parts: list[Any] = [run.get(name) for name in ("model", "process", "sampler", "scheduler")]
    if not all(isinstance(part, dict) for part in parts):
      raise ValueError(f"{path} is not a run's; name a run's working directory")
    parts.append({name: run[name] for name in ("prompts", "codec") if name in run})
    return Described(*parts)
  model, _ = read_config(folder)
  found = read_scheduler(folder)
  process, sampler, rest = found or ({}, {}, {})
  return Described(model, process, sampler, rest, {})


def _check_same(config: ConfigDict, model: Mapping[str, Any], process: Mapping[str, Any]) -> None:
  """Raises ValueError where the weights of init_from would be another function under `config`."""
  own = dict(config.process)
  ours, theirs = _meaning(dict(config.model), own), _meaning(model, process or own)
  for field, value in theirs.items():
    if ours.get(field) != value:
      raise ValueError(
        f"config.{field} is {ours.get(field)!r} and the weights of {config.init_from} were made "
        f"with {value!r}; set that, or config.model to {{'name': {NAME!r}}} to take all of it"
      )


def _meaning(model: Mapping[str, Any], process: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of both that say which function the weights are; image size and dtype do not."""
  net, means = dataclasses.asdict(models.make(**model)), dataclasses.asdict(Diffusion(**process))
  if model["name"] == TEXT_TO_IMAGE:  # how many prompts there are is the data's
    net = {f"{part}.{k}": v for part in ("unet", "text") for k, v in net[part].items()}
  free = ("sample_size", "dropout", "dtype", "remat")
  fields = {f"model.{name}": v for name, v in net.items() if name.split(".")[-1] not in free}
  return {"model.name": model["name"], **fields, **{f"process.{k}": v for k, v in means.items()}}
