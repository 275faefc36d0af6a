"""Where the parts of a model lie in diffusers' layout, on disk or on the Hub, and which are taken.

    PIPELINE/unet/config.json, diffusion_pytorch_model.safetensors     or all flat in one folder
    PIPELINE/scheduler/scheduler_config.json
    PIPELINE/checkpoint-N/unet, checkpoint-N/unet_ema           of diffusers' training scripts
    PIPELINE/vae, PIPELINE/text_encoder, PIPELINE/tokenizer     of text-to-image

A part may be named alone: the scheduler is looked for beside it.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from jaxunlearn import data, weights
from jaxunlearn.weights import arrays

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"
SHARDED = f"{WEIGHTS}.index.json"
CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
NAMED, NAMED_SHARDED = "model.safetensors", "model.safetensors.index.json"  # of transformers
OTHERS = (  # what is asked of the Hub where it has no WEIGHTS
  NAMED,
  "model.fp16.safetensors",
  "diffusion_pytorch_model.fp16.safetensors",
  "diffusion_pytorch_model.safetensors.index.fp16.json",
)
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
TEXT_UNET = "UNet2DConditionModel"
_WEIGHTS = re.compile(
  r"(?P<stem>diffusion_pytorch_model|model)(\.(?P<variant>\w+))?\.(?P<kind>safetensors|bin)"
  r"(?P<index>\.index(\.(?P<of>\w+))?\.json)?"
)
_PRECISION = {"": 0, "fp16": 1}  # what is taken first


def part(folder: pathlib.Path, name: str) -> pathlib.Path:
  """A component of a pipeline: its subfolder, or the folder itself where all lies flat."""
  inner = pathlib.Path(folder) / name
  return inner if inner.is_dir() else pathlib.Path(folder)


def scheduler(folder: pathlib.Path) -> pathlib.Path | None:
  """The scheduler_config.json of the pipeline that `folder` is, or is a part of."""
  folder = pathlib.Path(folder).absolute()
  homes = [folder]
  if folder.name.startswith("unet"):
    homes.append(folder.parent)
  if homes[-1].name.startswith("checkpoint-"):
    homes.append(homes[-1].parent)
  paths = [home / name / SCHEDULER for home in homes for name in ("scheduler", ".")]
  return next((path for path in paths if path.is_file()), None)


def is_text_to_image(folder: pathlib.Path) -> bool:
  """Whether the folder's UNet reads a text."""
  path = part(folder, "unet") / CONFIG
  return path.is_file() and read_json(path).get("_class_name") == TEXT_UNET


def state(folder: pathlib.Path, name: str = "unet") -> Mapping[str, np.ndarray]:
  """The weights of a UNet, or of another part of a pipeline, by their names in PyTorch.

  Each is read when it is asked for.

  Raises:
    ValueError: no weights there, or a damaged file.
  """
  inner = part(folder, name)
  if inner.name == "unet" and (inner.parent / "unet_ema").is_dir():
    logging.warning("%s is taken; the average lies in %s", inner, inner.parent / "unet_ema")
  path = _choose(inner, NAMED if name == "text_encoder" else WEIGHTS)
  if path.suffix != ".json":
    return weights.open_(path)
  shards = [inner / name for name in _shards(path)]
  if lost := [shard.name for shard in shards if not shard.is_file()]:
    raise ValueError(f"{path} lists {lost[0]!r}, which is not there; fetch it again")
  return arrays.together([weights.open_(shard) for shard in shards])


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; raises ValueError where there is none."""
  try:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
      raise ValueError(f"a {type(content).__name__}, not an object")
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f"cannot read {path} ({error}); fetch or make it again") from error
  return content


def _choose(folder: pathlib.Path, usual: str) -> pathlib.Path:
  """The weights file of a folder, or the index of several, and says which where more are there.

  `usual` is the name that is told where there is none.
  """
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  found = [match for name in names if (match := _WEIGHTS.fullmatch(name))]
  if not found:
    raise ValueError(_missing(folder / usual, names))
  first, *more = (match[0] for match in sorted(found, key=_order))
  if more or _variant(_WEIGHTS.fullmatch(first)):
    logging.warning("%s is taken%s", folder / first, f", not {', '.join(more)}" if more else "")
  return folder / first


def _order(match: re.Match[str]) -> tuple[Any, ...]:
  """safetensors before pickles, full precision before half, one file before several."""
  variant = _variant(match)
  named = match["stem"] == "model"
  pickled = match["kind"] == "bin"
  return pickled, _PRECISION.get(variant, 2), named, bool(match["index"]), variant


def _variant(match: Any) -> str:
  return match["variant"] or match["of"] or ""


def _missing(path: pathlib.Path, names: list[str]) -> str:
  lies = sorted(n for n in names if n.endswith((".safetensors", *weights.PICKLED, ".ckpt")))
  if lies:
    return (
      f"{path} does not exist, but {lies[0]!r} does; if those are its weights alone, rename it to "
      f"{path.stem}{pathlib.Path(lies[0]).suffix}"
    )
  return (
    f"{path} does not exist; give a folder that holds {path.name}, or set {weights.ALLOW}=1 for "
    f"{PICKLED}, a pickle, where you trust its origin"
  )


def _shards(path: pathlib.Path) -> list[str]:
  """The files that an index names; they lie beside it."""
  named = read_json(path).get("weight_map")
  files = sorted(set(map(str, named.values()))) if isinstance(named, dict) else []
  kind = "safetensors" if ".safetensors." in path.name else "bin"
  if not files or not all(re.fullmatch(rf"\w[\w.-]*\.{kind}", file) for file in files):
    raise ValueError(f"{path} is no index of weights files beside it; fetch it again")
  return files


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
  """The repository in the Hub's cache: its configs and one set of weights of a part, no more.

  Pickled ones are fetched only where they may be read.
  """
  name, _, revision = origin.removeprefix("hub:").partition("@")
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise ValueError(
      f"{origin} needs huggingface_hub; run: pip install 'jaxunlearn[hub]', or give a folder"
    ) from error

  def get(parts: Sequence[str], files: Sequence[str]) -> pathlib.Path:
    wanted = [f"{part}{file}" for part in parts for file in files]
    return pathlib.Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))

  try:
    folder = _fetch_part(get, ("", "unet/", "scheduler/"), "unet", WEIGHTS, SHARDED)
    if is_text_to_image(folder):
      _fetch_part(get, ("vae/",), "vae", WEIGHTS, SHARDED)
      _fetch_part(get, ("text_encoder/",), "text_encoder", NAMED, NAMED_SHARDED)
      get(("", "tokenizer/"), (PIPELINE, *TOKENIZER, *LICENCES))
    return folder
  except Exception as error:  # the errors of the Hub's client and of its transport share no base
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f"{origin} cannot be fetched ({reason}); check the name and the network, or give a folder"
    ) from error


def _fetch_part(
  get: Callable[..., pathlib.Path], parts: Sequence[str], name: str, whole: str, index: str
) -> pathlib.Path:
  """The config of a part and one set of its weights; returns the snapshot's folder."""

  def holds(folder: pathlib.Path, *files: str) -> list[pathlib.Path]:
    paths = [part(folder, name) / file for file in files]
    return [path for path in paths if path.is_file()]

  folder = get(parts, (CONFIG, SCHEDULER, whole, index))
  if not holds(folder, whole, index):
    folder = get(parts, OTHERS)
  found = holds(folder, whole, index, *OTHERS)
  if not found:
    return get(parts, (PICKLED,)) if weights.pickle_allowed() else folder
  return get(parts, _shards(found[0])) if found[0].suffix == ".json" else folder
