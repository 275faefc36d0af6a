"""A CLIP vision tower in transformers' layout: of CLIPVisionModel, or of a whole CLIPModel.

FOLDER/config.json          the tower's fields, or those of `vision_config`
FOLDER/model.safetensors    names with the prefix `vision_model.`
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxunlearn.models import clip
from jaxunlearn.weights import layout, pretrained
from jaxunlearn.weights.layout import CONFIG

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of CLIP's pictures, in [0, 1]
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
PREFIX, PROJECTION = "vision_model.", "visual_projection.weight"


def load(folder: pathlib.Path) -> tuple[clip.Vision, Any]:
  """The network and its parameters, with the projection where the files have one.

  Raises:
    ValueError: no such tower there, or a damaged file.
  """
  state = {
    name.removeprefix(PREFIX): value
    for name, value in layout.state(folder, "text_encoder").items()  # of transformers' file names
    if name.startswith(PREFIX) or name == PROJECTION
  }
  state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
  if not state:
    raise ValueError(f"{folder} has no weights of a CLIP vision tower; give the folder of one")
  config = layout.read_json(pathlib.Path(folder) / CONFIG)
  net = clip.Vision(**_fields(config.get("vision_config", config), state))
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  return net, pretrained.from_state_dict(state, shapes)


def _fields(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  known = {field.name for field in dataclasses.fields(clip.Vision)} - {"dtype", "projection_dim"}
  fields = {name: value for name, value in config.items() if name in known}
  return {**fields, "projection_dim": len(state[PROJECTION]) if PROJECTION in state else 0}
