"""diffusers' config.json and scheduler_config.json <-> the fields of our UNet and our process.

What they ask for and we do not have would be another function: it is refused, never left out.
Fields that a file lacks have diffusers' defaults.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.models import unet, uvit

VERSION = "0.42.1"  # of diffusers, whose fields and defaults these are
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
  "norm_eps": 1e-5,
  "dropout": 0.0,
  "downsample_padding": 1,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
}
FIXED: dict[str, Any] = {  # those that it has at this value only
  "center_input_sample": False,
  "time_embedding_type": "positional",
  "time_embedding_dim": None,
  "mid_block_type": "UNetMidBlock2D",
  "mid_block_scale_factor": 1,
  "downsample_type": "conv",
  "upsample_type": "conv",
  "act_fn": "silu",
  "attn_norm_num_groups": None,
  "resnet_time_scale_shift": "default",
  "add_attention": True,
  "class_embed_type": None,
  "num_class_embeds": None,
}
IDLE = ("num_train_timesteps", PATCH_SIZE, CLASSES)  # num_...: for learned time embeddings only

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
PROCESS: dict[str, tuple[str, Any]] = {  # ours -> theirs and its default
  "schedule": ("beta_schedule", "linear"),
  "T": ("num_train_timesteps", 1000),
  "beta_1": ("beta_start", 1e-4),
  "beta_T": ("beta_end", 0.02),
}
PROCESS_FIXED: dict[str, Any] = {
  "trained_betas": None,
  "prediction_type": "epsilon",
  "rescale_betas_zero_snr": False,
}
SAMPLING: dict[str, Any] = {  # how our samplers go; the process does not depend on it
  "variance_type": "fixed_small",
  "clip_sample": True,
  "clip_sample_range": 1.0,
  "thresholding": False,
  "timestep_spacing": "leading",
  "steps_offset": 0,
}

PIPELINE = {  # model_index.json
  "_class_name": "DDPMPipeline",
  "_diffusers_version": VERSION,
  "scheduler": ["diffusers", "DDPMScheduler"],
  "unet": ["diffusers", "UNet2DModel"],
}


def model_fields(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields of models.make from those of a config.json, which `path` names in errors.

  Raises:
    ValueError: another class than UNet2DModel and ours, or a field that our UNet lacks.
  """
  if config.get("_class_name") == UVIT:
    fields = {name: _plain(v) for name, v in config.items() if not name.startswith("_")}
    return {"name": "uvit", **_checked(uvit.Net, fields, path)}
  if config.get("_class_name") not in (UNET, CONDITIONAL):
    raise ValueError(
      f"{path} is of {config.get('_class_name', 'no model')!r}; give the folder of a UNet2DModel"
    )
  _check_fixed(config, FIXED, path)
  for name, value in config.items():
    known = name in FREE or name in FIXED or name in IDLE or name.startswith("_")
    if not known and value is not None:
      raise ValueError(
        f"{path}: {name} is {value!r}, which is not implemented; take weights without it"
      )
  fields = {name: _plain(config.get(name, default)) for name, default in FREE.items()}
  size, p = fields["sample_size"], config.get(PATCH_SIZE, 1)
  if isinstance(size, tuple) and len(set(size)) == 1:
    size = size[0]
  if not isinstance(size, int):
    raise ValueError(f"{path}: sample_size is {size!r}; write the images' side there, in pixels")
  if p > 1:
    fields["in_channels"] //= p**2
    fields["out_channels"] //= p**2
  fields |= {"sample_size": size * p, "patch_size": p, "classes": tuple(config.get(CLASSES, ()))}
  return {"name": "unet", **_checked(unet.Net, fields, path)}


def process_fields(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields of `Diffusion` from those of a scheduler_config.json, named `path` in errors.

  Raises:
    ValueError: a scheduler or schedule that is not of a DDPM, or another target than the noise.
  """
  try:
    errors.check_choice("scheduler", config.get("_class_name", SCHEDULERS[0]), SCHEDULERS)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  _check_fixed(config, PROCESS_FIXED, path)
  for name, here in SAMPLING.items():
    if config.get(name, here) != here:
      logging.warning("%s: %s is %r; sampling here has %r", path, name, config[name], here)
  fields = {ours: config.get(theirs, default) for ours, (theirs, default) in PROCESS.items()}
  return _checked(Diffusion, fields, path)


def of_net(net: unet.Net | uvit.Net) -> dict[str, Any]:
  """config.json of the UNet2DModel inside our UNet, which takes images folded by patch_size.

  That of a U-ViT has the fields of its `Net`.
  """
  if isinstance(net, uvit.Net):
    return {"_class_name": UVIT, **dataclasses.asdict(net)}
  fields, p = {name: getattr(net, name) for name in FREE}, net.patch_size
  if p > 1:
    fields["sample_size"] //= p
    fields["in_channels"] *= p**2
    fields["out_channels"] *= p**2
    fields[PATCH_SIZE] = p
  if net.classes:
    fields[CLASSES] = net.classes
  kind = CONDITIONAL if net.classes else UNET
  return {"_class_name": kind, "_diffusers_version": VERSION, **fields}


def of_process(process: Diffusion) -> dict[str, Any]:
  """scheduler_config.json of a DDPMScheduler that samples as `sampling.ddpm` does."""
  betas = {theirs: getattr(process, ours) for ours, (theirs, _) in PROCESS.items()}
  head = {"_class_name": "DDPMScheduler", "_diffusers_version": VERSION}
  return {**head, **betas, **PROCESS_FIXED, **SAMPLING}


def _check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], path: pathlib.Path) -> None:
  for name, here in fixed.items():
    if config.get(name, here) != here:
      raise ValueError(
        f"{path}: {name} is {config[name]!r} and only {here!r} is implemented; "
        "take weights with that"
      )


def _checked(kind: Any, fields: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields, once `kind` takes them."""
  try:
    kind(**fields)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path}: {error}") from error
  return fields


def _plain(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
