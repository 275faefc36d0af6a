"""diffusers' scheduler_config.json <-> our process, the options of our samplers, and the rest.

The classes here walk the process of a DDPM back, each in its way. Which noise there was, and when,
is the process; the options that our samplers share with them are `sampling.Options`; what only
their own sampler reads (skip_prk_steps, solver_order) is the rest, which an export hands on. A
field that a file lacks has its class' default.

An option counts as the file gives it, whether its class reads it or not, and is written so: another
class may be made of the file. DDIMScheduler.from_config of a PNDMScheduler's file clips unless
`clip_sample` is false there, which spoils latents: theirs go through `of_latents`. A file of
DDIMScheduler means its walk, in which the noise is not that of the clipped x0. Some classes walk as
a sampler of ours does: `sampler_of` names it.
"""

import dataclasses
import math
import pathlib
import types
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
  "prediction": "prediction_type",
}
NOISE: dict[str, Any] = {
  "beta_schedule": "linear",
  "num_train_timesteps": 1000,
  "beta_start": 1e-4,
  "beta_end": 0.02,
  "trained_betas": None,
  "prediction_type": "epsilon",
}
FIXED: dict[str, Any] = {  # what all of them have at this value only
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
OPTIONS = dataclasses.asdict(sampling.DEFAULT)
_CLIPPED = "use_clipped_model_output"
_PIPELINES = {"DDIMScheduler": "DDIMPipeline"}


class Equal(NamedTuple):
  """The sampler of ours that walks as a class does."""

  name: str
  wanted: Mapping[str, Any] = types.MappingProxyType({})  # fields; at other values there is none
  options: Mapping[str, Any] = types.MappingProxyType({})  # what the class does without a field


_SIGMAS = {  # noise levels as the times say, down to none
  "use_karras_sigmas": False,
  "use_exponential_sigmas": False,
  "use_beta_sigmas": False,
  "final_sigmas_type": "zero",
}
_SOLVER = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_LAMBDAS = {"use_lu_lambdas": False, "lambda_min_clipped": -math.inf}
_EULER = {"interpolation_type": "linear", "timestep_type": "discrete"}
EQUALS = {
  "DDPMScheduler": Equal("ddpm"),
  "DDPMParallelScheduler": Equal("ddpm"),
  "DDIMScheduler": Equal("ddim"),
  "DDIMParallelScheduler": Equal("ddim"),
  "PNDMScheduler": Equal("plms", {"skip_prk_steps": True}),
  "DPMSolverMultistepScheduler": Equal("dpm", {**_SOLVER, **_LAMBDAS, **_SIGMAS}),
  "EulerDiscreteScheduler": Equal(
    "ddim",
    {"timestep_spacing": "leading", **_EULER, **_SIGMAS},
    {"set_alpha_to_one": True, "clip_sample": False},
  ),
}


class Scheduler(NamedTuple):
  """What a scheduler_config.json says."""

  process: dict[str, Any]  # fields of Diffusion
  sampler: dict[str, Any]  # fields of sampling.Options
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
  own = CLASSES[name]
  values = {**NOISE, **own, **config}
  process = {ours: values[theirs] for ours, theirs in PROCESS.items()}
  process["betas"] = _betas(values["trained_betas"], path)
  sampler = {k: values[k] for k in OPTIONS if k in own or values.get(k) is not None}
  sampler = _unsaid(name, sampler.get("clip_sample", True)) | sampler
  told = {*NOISE, *sampler, *FIXED}
  rest = {k: v for k, v in config.items() if k not in told and not k.startswith("_")}
  return Scheduler(
    checked(Diffusion, process, path),
    checked(sampling.Options, sampler, path),
    {"class_name": name, **rest},
  )


def of_latents(found: Scheduler) -> Scheduler:
  """As StableDiffusionPipeline takes a scheduler: nothing is clipped, and times are offset by 1."""
  never = {"clip_sample": False, "steps_offset": 1, _CLIPPED: OPTIONS[_CLIPPED]}
  return found._replace(sampler=found.sampler | never)


def _unsaid(name: str, clip: bool) -> dict[str, Any]:
  """The options that a class means by no field: DDIM goes on with the noise that the network gave.

  Where nothing is clipped that is the noise of x0 too.
  """
  return {_CLIPPED: False} if clip and name in ("DDIMScheduler", "DDIMParallelScheduler") else {}


def _betas(values: Any, path: pathlib.Path) -> tuple[float, ...]:
  if values is not None and not isinstance(values, list):
    raise ValueError(f"{path}: trained_betas is {values!r}; give a list of numbers, or null")
  return tuple(values or ())


def write(process: Diffusion, sampler: sampling.Options, rest: Mapping[str, Any]) -> dict[str, Any]:
  """scheduler_config.json of the class that `rest` names, which walks as our sampler does."""
  rest = {"class_name": DEFAULT, **rest}
  name = rest.pop("class_name")
  noise = {theirs: getattr(process, ours) for ours, theirs in PROCESS.items()}
  noise["trained_betas"] = list(process.betas) or None
  options = dataclasses.asdict(sampler)
  unsaid = OPTIONS | _unsaid(name, sampler.clip_sample)
  shared = {k: v for k, v in options.items() if k in CLASSES[name] or v != unsaid[k]}
  head = {"_class_name": name, "_diffusers_version": VERSION}
  return {**head, **noise, **shared, **rest}


def sampler_of(options: sampling.Options, rest: Mapping[str, Any]) -> tuple[str, sampling.Options]:
  """The name of the sampler that walks as the class of `rest` does, and the options it takes.

  Euler's walk is that of DDIM from unit noise without a clip, down to abar 1; with a steps_offset
  of n, for at most T / (n + 1) steps. Where Euler's times are no whole numbers there is no equal.

  Raises:
    ValueError: no sampler walks so.
  """
  name = rest.get("class_name", DEFAULT)
  others = f"choose one of ours: {', '.join(sampling.SAMPLERS)}"
  if name not in EQUALS:
    raise ValueError(f"no sampler here walks as {name} does; {others}")
  equal = EQUALS[name]
  given = {"skip_prk_steps": False, **dataclasses.asdict(options), **rest}
  for field, value in equal.wanted.items():
    found = value if given.get(field) is None else given[field]
    if found != value:
      raise ValueError(
        f"no sampler here walks as {name} does with {field} {found!r}; set it to {value!r}, or "
        f"{others}"
      )
  return equal.name, dataclasses.replace(options, **equal.options)


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
