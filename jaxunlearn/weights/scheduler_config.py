"""diffusers' scheduler_config.json <-> our process, the options of our samplers, and the rest.

The classes here walk the process of a DDPM back, each in its way. Which noise there was, and when,
is the process; the options that our samplers share with them are `sampling.Options`; what only
their own sampler reads (skip_prk_steps, solver_order) is the rest, which an export hands on. A
field that a file lacks has its class' default.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion, sampling

VERSION = "0.42.1"  # of diffusers, whose fields and defaults these are
DEFAULT = "DDPMScheduler"

PROCESS = {  # ours -> theirs
  "schedule": "beta_schedule",
  "T": "num_train_timesteps",
  "beta_1": "beta_start",
  "beta_T": "beta_end",
  "betas": "trained_betas",
}
BETAS: dict[str, Any] = {
  "beta_schedule": "linear",
  "num_train_timesteps": 1000,
  "beta_start": 1e-4,
  "beta_end": 0.02,
  "trained_betas": None,
}
FIXED: dict[str, Any] = {  # what all of them have at this value only
  "prediction_type": "epsilon",
  "rescale_betas_zero_snr": False,
  "thresholding": False,
  "use_flow_sigmas": False,
}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_DDPM = {"variance_type": "fixed_small", **_CLIP, **_LEADING}
_DDIM = {"set_alpha_to_one": True, **_CLIP, **_LEADING}
CLASSES: dict[str, dict[str, Any]] = {  # the defaults of the fields that each shares with ours
  "DDPMScheduler": _DDPM,
  "DDPMParallelScheduler": _DDPM,
  "DDIMScheduler": _DDIM,
  "DDIMParallelScheduler": _DDIM,
  "PNDMScheduler": {"set_alpha_to_one": False, **_LEADING},
  "DPMSolverMultistepScheduler": _LINSPACE,
  "DPMSolverSinglestepScheduler": {},
  "DEISMultistepScheduler": _LINSPACE,
  "UniPCMultistepScheduler": _LINSPACE,
  "EulerDiscreteScheduler": _LINSPACE,
  "EulerAncestralDiscreteScheduler": _LINSPACE,
  "LMSDiscreteScheduler": _LINSPACE,
  "HeunDiscreteScheduler": {**_LATENT, **_CLIP, "clip_sample": False, **_LINSPACE},
  "KDPM2DiscreteScheduler": {**_LATENT, **_LINSPACE},
  "KDPM2AncestralDiscreteScheduler": {**_LATENT, **_LINSPACE},
}
_PIPELINES = {"DDIMScheduler": "DDIMPipeline"}


class Scheduler(NamedTuple):
  """What a scheduler_config.json says."""

  process: dict[str, Any]  # fields of Diffusion
  sampler: dict[str, Any]  # fields of sampling.Options, those that the class has
  rest: dict[str, Any]  # class_name, and what only its own sampler reads


def read(config: Mapping[str, Any], path: pathlib.Path) -> Scheduler:
  """The parts of a scheduler_config.json, which `path` names in errors.

  Raises:
    ValueError: a class or schedule that is not of a DDPM, another target than the noise, or an
      option that our samplers have not.
  """
  name = str(config.get("_class_name", DEFAULT))
  try:
    errors.check_choice("scheduler", name, CLASSES)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  check_fixed(config, FIXED, path)
  known = BETAS | CLASSES[name]
  values = {field: config.get(field, default) for field, default in known.items()}
  process = {ours: values[theirs] for ours, theirs in PROCESS.items()}
  process["betas"] = _betas(values["trained_betas"], path)
  sampler = {field: values[field] for field in CLASSES[name] if field not in BETAS}
  rest = {k: v for k, v in config.items() if not (k in known or k in FIXED or k.startswith("_"))}
  return Scheduler(
    checked(Diffusion, process, path),
    checked(sampling.Options, sampler, path),
    {"class_name": name, **rest},
  )


def _betas(values: Any, path: pathlib.Path) -> tuple[float, ...]:
  if values is not None and not isinstance(values, list):
    raise ValueError(f"{path}: trained_betas is {values!r}; give a list of numbers, or null")
  return tuple(values or ())


def write(process: Diffusion, sampler: sampling.Options, rest: Mapping[str, Any]) -> dict[str, Any]:
  """scheduler_config.json of the class that `rest` names, which walks as our sampler does."""
  rest = {"class_name": DEFAULT, **rest}
  name = rest.pop("class_name")
  betas = {theirs: getattr(process, ours) for ours, theirs in PROCESS.items()}
  betas["trained_betas"] = list(process.betas) or None
  shared = {k: v for k, v in dataclasses.asdict(sampler).items() if k in CLASSES[name]}
  target = {"prediction_type": FIXED["prediction_type"]}
  head = {"_class_name": name, "_diffusers_version": VERSION}
  return {**head, **betas, **target, **shared, **rest}


def pipeline(rest: Mapping[str, Any]) -> dict[str, Any]:
  """model_index.json of an unconditional UNet with that scheduler."""
  name = rest.get("class_name", DEFAULT)
  return {
    "_class_name": _PIPELINES.get(name, "DDPMPipeline"),
    "_diffusers_version": VERSION,
    "scheduler": ["diffusers", name],
    "unet": ["diffusers", "UNet2DModel"],
  }


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], path: pathlib.Path) -> None:
  """Raises ValueError for the first field that has another value than the one we have."""
  for name, here in fixed.items():
    if config.get(name, here) != here:
      raise ValueError(
        f"{path}: {name} is {config[name]!r} and only {here!r} is implemented; "
        "take weights with that"
      )


def checked(kind: Any, fields: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields, once `kind` takes them."""
  try:
    kind(**fields)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path}: {error}") from error
  return fields
