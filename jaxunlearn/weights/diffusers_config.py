"""diffusers' config.json <-> the fields of our UNet.

What it asks for and we do not have would be another function: it is refused, never left out.
Fields that a file lacks have diffusers' defaults; of values that say the same one is taken.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxunlearn.models import unet, uvit
from jaxunlearn.weights.scheduler_config import VERSION, check_fixed, checked

PATCH_SIZE, CLASSES = "jaxunlearn_patch_size", "jaxunlearn_classes"
UNET = "UNet2DModel"
CONDITIONAL, UVIT = "ConditionalUNet2D", "UViT"  # ours, not diffusers'

FREE: dict[str, Any] = {  # the fields of UNet2DModel that our UNet has
  "sample_size": None,
  "in_channels": 3,
  "out_channels": 3,
  "block_out_channels": (224, 448, 672, 896),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 2,
  "attention_head_dim": 8,
  "norm_num_groups": 32,
  "attn_norm_num_groups": None,
  "norm_eps": 1e-5,
  "resnet_time_scale_shift": "default",
  "dropout": 0.0,
  "downsample_padding": 1,
  "downsample_type": "conv",
  "upsample_type": "conv",
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "time_embedding_dim": None,
  "num_class_embeds": None,
}
FIXED: dict[str, Any] = {  # those that it has at this value only
  "center_input_sample": False,
  "time_embedding_type": "positional",
  "mid_block_type": "UNetMidBlock2D",
  "mid_block_scale_factor": 1,
  "act_fn": "silu",
  "add_attention": True,
  "class_embed_type": None,
}
IDLE = (  # no output depends on them
  *("num_train_timesteps", PATCH_SIZE, CLASSES),  # num_...: for learned time embeddings only
  # What EMAModel.save_pretrained writes beside the fields of the model.
  *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup"),
  *("inv_gamma", "power"),
)
RENAMED = "UNetRes"  # what diffusers' first files set before the names of blocks


def model_fields(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields of models.make from those of a config.json, which `path` names in errors.

  Raises:
    ValueError: another class than UNet2DModel and ours, or a field that our UNet lacks.
  """
  if config.get("_class_name") == UVIT:
    fields = {name: _plain(v) for name, v in config.items() if not name.startswith("_")}
    return {"name": "uvit", **checked(uvit.Net, fields, path)}
  if config.get("_class_name") not in (UNET, CONDITIONAL):
    named = config.get("_class_name", "no model")
    raise ValueError(f"{path} describes {named!r}; give the folder of a UNet2DModel")
  check_fixed(_spelt(config), FIXED, path)
  for name, value in config.items():
    known = name in FREE or name in FIXED or name in IDLE or name.startswith("_")
    if not known and value is not None:
      raise ValueError(
        f"{path}: {name} is {value!r}, which is not implemented; take weights without it"
      )
  try:
    fields = _fields(config)
  except (TypeError, AttributeError, LookupError, ZeroDivisionError) as error:
    raise ValueError(f"{path}: a field has the wrong type ({error}); fetch it again") from error
  if fields["sample_size"] is None:
    raise ValueError(f"{path}: sample_size is None; write the images' side there, in pixels")
  return {"name": "unet", **checked(unet.Net, fields, path)}


def _spelt(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with its activation by the name that we have for it."""
  name = config.get("act_fn", "silu")
  same = isinstance(name, str) and name.lower() in ("silu", "swish")
  return {**config, "act_fn": "silu"} if same else dict(config)


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `unet.Net`: those of the file, of images that are not folded yet."""
  fields = {name: _plain(config.get(name, default)) for name, default in FREE.items()}
  size, p, count = fields["sample_size"], config.get(PATCH_SIZE, 1), fields["num_class_embeds"]
  if isinstance(size, tuple):
    size = size[0] if len(set(size)) == 1 else tuple(side * p for side in size)
  fields["sample_size"] = size * p if isinstance(size, int) else size
  for field in ("in_channels", "out_channels"):
    fields[field] //= p**2
  for field in ("down_block_types", "up_block_types"):
    fields[field] = tuple(block.removeprefix(RENAMED) for block in fields[field])
  for field in ("downsample_type", "upsample_type"):
    fields[field] = fields[field] or "conv"
  if fields["time_embedding_dim"] == 4 * fields["block_out_channels"][0]:
    fields["time_embedding_dim"] = None
  classes = config.get(CLASSES, () if count is None else (count,))
  return {**fields, "patch_size": p, "classes": tuple(classes)}


def of_net(net: unet.Net | uvit.Net) -> dict[str, Any]:
  """config.json of the UNet2DModel inside our UNet, which takes images folded by patch_size.

  That of a U-ViT has the fields of its `Net`.
  """
  if isinstance(net, uvit.Net):
    return {"_class_name": UVIT, **dataclasses.asdict(net)}
  fields, p = {name: getattr(net, name) for name in FREE}, net.patch_size
  if p > 1:
    height, width = (side // p for side in net.image_shape[:2])
    fields["sample_size"] = height if height == width else (height, width)
    fields["in_channels"] *= p**2
    fields["out_channels"] *= p**2
    fields[PATCH_SIZE] = p
  if net.classes:
    fields[CLASSES] = net.classes
  kind = CONDITIONAL if net.classes and net.num_class_embeds is None else UNET
  return {"_class_name": kind, "_diffusers_version": VERSION, **fields}


def _plain(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
