"""Weights of U-ViTs under the names of their published PyTorch state dicts, both ways.

The rule is that of `pretrained.py`, but for the table of the first condition: `label_emb`.
A file is read by `from_state_dict(weights.read(path), jax.eval_shape(net.init, key))`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn.weights import pretrained

_OURS, _THEIRS = "class_embedding.0.weight", "label_emb.weight"


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
  """Our nested parameters as PyTorch's flat, named state dict (NumPy float32)."""
  return _renamed(pretrained.to_state_dict(params), _OURS, _THEIRS)


def from_state_dict(state: Mapping[str, np.ndarray], target: Any) -> Any:
  """The inverse of `to_state_dict`, into the structure of `target` (arrays or their shapes).

  Raises:
    ValueError: a weight is missing, left over, or of another shape.
  """
  return pretrained.from_state_dict(_renamed(state, _THEIRS, _OURS), target)


def _renamed(state: Mapping[str, np.ndarray], name: str, to: str) -> dict[str, np.ndarray]:
  return {to if key == name else key: value for key, value in state.items()}
