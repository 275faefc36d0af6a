"""Weights in diffusers' layout: a folder with config.json and a weights file, both ways.

The mapping is a rule, not a table: `down_blocks_0/resnets_1/conv1/kernel` [kh, kw, I, O] is
`down_blocks.0.resnets.1.conv1.weight` [O, I, kh, kw]; linear kernels are transposed; the scale of
a norm is its weight.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from jaxunlearn import data, models, weights
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.models import unet, uvit
from jaxunlearn.weights import diffusers_config

NAME = "pretrained"  # the config.model.name that takes model and process from init_from
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"
SHARDED = f"{WEIGHTS}.index.json"
CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"

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
_ADVICE = "set config.model to the checkpoint's architecture"


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
  """Our nested parameters as PyTorch's flat, named, OIHW state dict (NumPy)."""
  return {
    _torch_name(path): np.ascontiguousarray(np.asarray(leaf).transpose(_axes(path, leaf)))
    for path, leaf in jax.tree.leaves_with_path(params)
  }


def from_state_dict(state: Mapping[str, np.ndarray], target: Any) -> Any:
  """The inverse of `to_state_dict`, into the structure of `target` (arrays or their shapes).

  Raises:
    ValueError: a weight is missing, left over, or of another shape.
  """
  left = {_OLD_NAME.sub(lambda m: f"{m[1]}.{_OLD[m[2]]}", name): v for name, v in state.items()}

  def take(path: Any, leaf: Any) -> np.ndarray:
    name, axes = _torch_name(path), _axes(path, leaf)
    if name not in left:
      raise ValueError(f"the weights have no {name!r}; {_ADVICE}")
    value, shape = left.pop(name), tuple(leaf.shape[i] for i in axes)
    if value.shape != shape:
      raise ValueError(
        f"{name!r} is {value.shape} in the weights and {shape} in the config's model; {_ADVICE}"
      )
    return np.ascontiguousarray(value.transpose(np.argsort(axes)), np.float32)

  params = jax.tree.map_with_path(take, target)
  if left:
    raise ValueError(
      f"the weights hold {len(left)} arrays that the config's model has not, the first is "
      f"{min(left)!r}; {_ADVICE}"
    )
  return params


def _axes(path: Any, leaf: Any) -> tuple[int, ...]:
  """Where PyTorch has our axes; a table of embeddings stands as it is."""
  return (0, 1) if path[-1].key == "embedding" else _TO_TORCH[len(leaf.shape)]


def _torch_name(path: Any) -> str:
  *module, kind = (key.key for key in path)
  name = ".".join([*module, "weight" if kind in _WEIGHTS else kind])
  return _LISTS.sub(r"\1.\2", name)


# Folders.


def save(folder: pathlib.Path, net: unet.Net | uvit.Net, params: Any, process: Diffusion) -> None:
  """Writes `folder` as diffusers' UNet2DModel and DDPMPipeline `.from_pretrained` read it.

  With patch_size p > 1 it holds the UNet2DModel inside, which takes folded images: channel
  (i p + j) C + c of pixel (h, w) is channel c of the image's pixel (h p + i, w p + j). A
  conditional network, and a U-ViT, are not in diffusers: only this project reads its folder.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  contents = {
    CONFIG: diffusers_config.of_net(net),
    SCHEDULER: diffusers_config.of_process(process),
    PIPELINE: diffusers_config.PIPELINE,
  }
  if contents[CONFIG]["_class_name"] != diffusers_config.UNET:
    del contents[PIPELINE]
  for name, content in contents.items():
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")
  arrays = safetensors.numpy.save(to_state_dict(params), metadata={"format": "pt"})
  (folder / WEIGHTS).write_bytes(arrays)  # save_file would leave it to its owner alone


def load(folder: pathlib.Path, target: Any) -> Any:
  """Parameters (NumPy) from a folder of diffusers' layout, into the structure of `target`.

  Raises:
    ValueError: no weights there, a damaged file, or weights of another architecture.
  """
  folder = _part(folder, "unet")
  for name in (WEIGHTS, PICKLED):
    if (folder / name).is_file():
      return from_state_dict(weights.read(folder / name), target)
  if (folder / SHARDED).is_file():
    raise ValueError(
      f"{folder / SHARDED} lists weights in several files; save them with diffusers in one, by "
      "save_pretrained(FOLDER, max_shard_size='100GB')"
    )
  raise ValueError(
    f"{folder / WEIGHTS} does not exist; give a folder that holds {WEIGHTS}, or set "
    f"{weights.ALLOW}=1 for {PICKLED}, a pickle, where you trust its origin"
  )


def locate(origin: str) -> pathlib.Path:
  """The folder that init_from names: a path, assets:NAME or hub:OWNER/NAME[@REVISION].

  Raises ValueError where there is no such folder, or it cannot be fetched.
  """
  if origin.startswith("assets:"):
    return data.ASSETS / origin.removeprefix("assets:")
  if origin.startswith("hub:"):
    return _fetch(origin)
  folder = pathlib.Path(origin).expanduser()
  if not folder.is_dir():
    raise ValueError(
      f"init_from {origin!r} is not a folder; give a run's working directory, a folder with "
      f"{WEIGHTS}, assets:NAME or hub:OWNER/NAME"
    )
  return folder


def _fetch(origin: str) -> pathlib.Path:
  """The repository in the Hub's cache: its configs and one weights file, no more.

  A pickled one is fetched only where it may be read.
  """
  name, _, revision = origin.removeprefix("hub:").partition("@")
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise ValueError(
      f"{origin} needs huggingface_hub; run: pip install 'jaxunlearn[hub]', or give a folder"
    ) from error

  def get(*files: str) -> pathlib.Path:
    wanted = [f"{part}{file}" for part in ("", "unet/", "scheduler/") for file in files]
    return pathlib.Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))

  try:
    folder = get(CONFIG, SCHEDULER, WEIGHTS, SHARDED)
    found = any((_part(folder, "unet") / file).is_file() for file in (WEIGHTS, SHARDED))
    return folder if found or not weights.pickle_allowed() else get(PICKLED)
  except Exception as error:  # the errors of the Hub's client and of its transport share no base
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f"{origin} cannot be fetched ({reason}); check the name and the network, or give a folder"
    ) from error


def _part(folder: pathlib.Path, name: str) -> pathlib.Path:
  """A component of a pipeline: its subfolder, or the folder itself where all lies flat."""
  part = pathlib.Path(folder) / name
  return part if part.is_dir() else pathlib.Path(folder)


# Configs.


def read_config(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The fields of models.make(...) and of Diffusion that the weights of `folder` mean.

  The second is empty where the folder has no scheduler_config.json.

  Raises:
    ValueError: a file is missing or damaged, or holds a field that is not implemented.
  """
  path = _part(folder, "unet") / CONFIG
  model = diffusers_config.model_fields(_read_json(path), path)
  path = _part(folder, "scheduler") / SCHEDULER
  return model, diffusers_config.process_fields(_read_json(path), path) if path.is_file() else {}


def adopt(config: ConfigDict) -> None:
  """Brings a config and what stands in init_from's folder together.

  A model named `pretrained` becomes that of config.json (its own dtype is kept) and the process
  that of the scheduler's; a model that is spelt out has to be the same function.

  Raises:
    ValueError: nothing to take the model from, or the weights mean another model or process.
  """
  described = _described(locate(config.init_from)) if config.init_from else None
  if config.model.get("name") != NAME:
    if described:
      _check_same(config, *described)
    return
  if not described:
    raise ValueError(
      f"config.model is {NAME!r} and init_from {config.init_from!r} has no {CONFIG}; name weights "
      "in diffusers' layout, or a run"
    )
  model, process = described
  if more := set(config.model) - {"name", "dtype"}:
    raise ValueError(f"config.model is {NAME!r} and sets {min(more)} too; drop one of them")
  with config.unlocked():
    config.model = {**model, **config.model, "name": model["name"]}
    config.process.update(process)


def _described(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """config.model and config.process of a run, or what stand for them in diffusers' layout."""
  path = _part(folder, "unet") / CONFIG
  if not path.is_file():
    return None
  if (folder / "checkpoints").is_dir():
    run = _read_json(path)
    return run["model"], run["process"]
  model, process = read_config(folder)
  return model, process


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
  free = ("sample_size", "dropout", "dtype")
  fields = {f"model.{name}": v for name, v in net.items() if name not in free}
  return {"model.name": model["name"], **fields, **{f"process.{k}": v for k, v in means.items()}}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"cannot read {path} ({error}); fetch or make it again") from error
