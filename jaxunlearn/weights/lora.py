"""LoRA files of a UNet, as diffusers and PEFT name them, both ways.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_A.weight   [rank, in]
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_B.weight   [out, rank]

W + B A for W: the factor alpha / rank of a run is in B already, so that every reader's is 1.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from jaxunlearn import weights
from jaxunlearn.adapters import Trained
from jaxunlearn.weights import pretrained

FILE = "pytorch_lora_weights.safetensors"
A, B = "lora_A.weight", "lora_B.weight"
_TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}  # as pretrained.py has kernels


def save(folder: pathlib.Path, kind: Trained, params: Mapping[str, Any]) -> None:
  """Writes FILE of what a run trained, {"unet": ...} of `a` and `b`."""
  state: dict[str, np.ndarray] = {}
  for path, own in _products(params):
    a, b = np.asarray(own["a"]), np.asarray(own["b"])
    b = b.reshape(*[1] * (a.ndim - 2), *b.shape) * np.float32(kind.alpha / kind.rank)
    for name, value in ((A, a), (B, b)):
      turned = np.ascontiguousarray(value.transpose(_TO_TORCH[value.ndim]))
      state[f"{pretrained.module_name(path)}.{name}"] = turned
  (folder / FILE).write_bytes(safetensors.numpy.save(state, metadata={"format": "pt"}))


def merge(params: Mapping[str, Any], file: pathlib.Path) -> dict[str, Any]:
  """{"unet": ...} with the products of a LoRA file added to its kernels.

  Raises:
    ValueError: no LoRA there, or one of another model.
  """
  state = {k: v.astype(np.float32) for k, v in weights.read(file).items()}
  names = {name.removesuffix(f".{A}") for name in state if name.endswith(A)}
  if not names or state.keys() != {f"{name}.{part}" for name in names for part in (A, B)}:
    raise ValueError(
      f"{file} is no LoRA of a UNet by PEFT's names: its first array is {min(state)!r}; save it by "
      "diffusers' save_lora_weights, of the UNet alone"
    )

  def added(tree: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    if "kernel" in tree and (name := pretrained.module_name(path)) in names:
      names.remove(name)
      kernel = np.asarray(tree["kernel"])
      return {**tree, "kernel": kernel + _product(state, name, kernel.shape, file)}
    return {k: added(v, (*path, k)) if isinstance(v, Mapping) else v for k, v in tree.items()}

  merged = added(params, ())
  if names:
    raise ValueError(f"{file} moves {min(names)!r}, which this model lacks; take one made for it")
  return merged


def _product(
  state: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], file: pathlib.Path
) -> np.ndarray:
  """B A in our layout, for a kernel of that shape."""
  parts = [state[f"{name}.{part}"] for part in (A, B)]
  if all(part.ndim == len(shape) for part in parts):
    a, b = (part.transpose(np.argsort(_TO_TORCH[part.ndim])) for part in parts)
    if a.shape[-1] == b.shape[-2] and (*a.shape[:-1], b.shape[-1]) == shape:
      return a @ b.reshape(b.shape[-2:])
  raise ValueError(
    f"{file}: {name!r} is {parts[0].shape} and {parts[1].shape}, for a kernel of {shape}; take one "
    "made for this model"
  )


def _products(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
  """(path, {a, b}) of each product."""
  if "a" in tree:
    yield path, tree
    return
  for name, value in tree.items():
    yield from _products(value, (*path, name))
