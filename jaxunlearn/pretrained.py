"""Weights in diffusers' layout: a folder with config.json and a safetensors file, both ways.

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
import safetensors
import safetensors.numpy

from jaxunlearn.models import unet

WEIGHTS = "diffusion_pytorch_model.safetensors"
_LISTS = re.compile(
  r"\b(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out)_(\d+)"
)
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # HWIO -> OIHW, IO -> OI, by number of axes
_ADVICE = "set config.model to the checkpoint's architecture"


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
  """Our nested parameters as PyTorch's flat, named, OIHW state dict (NumPy)."""
  return {
    _torch_name(path): np.ascontiguousarray(np.asarray(leaf).transpose(_TO_TORCH[leaf.ndim]))
    for path, leaf in jax.tree.leaves_with_path(params)
  }


def from_state_dict(state: Mapping[str, np.ndarray], target: Any) -> Any:
  """The inverse of `to_state_dict`, into the structure of `target` (arrays or their shapes).

  Raises:
    ValueError: a weight is missing, left over, or of another shape.
  """
  left = dict(state)

  def take(path: Any, leaf: Any) -> np.ndarray:
    name, axes = _torch_name(path), _TO_TORCH[len(leaf.shape)]
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


def _torch_name(path: Any) -> str:
  *module, kind = (key.key for key in path)
  return _LISTS.sub(r"\1.\2", ".".join(module)) + (".bias" if kind == "bias" else ".weight")


def save(folder: pathlib.Path, net: unet.Net, params: Any) -> None:
  """Writes `folder` as diffusers' UNet2DModel.from_pretrained reads it.

  With patch_size p > 1 its config describes the UNet2DModel inside, which takes folded images:
  channel (i p + j) C + c of pixel (h, w) is channel c of the image's pixel (h p + i, w p + j).
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  fields = dataclasses.asdict(net)
  fields.pop("dtype")
  patch = fields.pop("patch_size")
  if patch > 1:
    fields |= {
      "sample_size": net.sample_size // patch,
      "in_channels": net.in_channels * patch**2,
      "out_channels": net.out_channels * patch**2,
      "jaxunlearn_patch_size": patch,
    }
  config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", **fields}
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  safetensors.numpy.save_file(to_state_dict(params), folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: pathlib.Path, target: Any) -> Any:
  """Parameters (NumPy) from a folder of diffusers' layout, into the structure of `target`.

  Raises:
    ValueError: no weights there, a damaged file, or weights of another architecture.
  """
  path = pathlib.Path(folder) / WEIGHTS
  if not path.is_file():
    raise ValueError(f"{path} does not exist; give a folder that holds {WEIGHTS}")
  try:
    state = safetensors.numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is damaged ({error}); fetch or make it again") from error
  return from_state_dict(state, target)
