"""Stable Diffusion's scheduler_config.json: in, out, and the sampler that walks as its class."""

import inspect
import pathlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.diffusion.options import Options
from jaxunlearn.weights import scheduler_config
from jaxunlearn.weights.scheduler_config import EQUALS, of_latents, read, sampler_of, write

PATH = pathlib.Path("scheduler_config.json")
PNDM = {  # as Stable Diffusion 1.4 has it
  "_class_name": "PNDMScheduler",
  "_diffusers_version": "0.7.0.dev0",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": False,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
}
CHOICES = "ddpm, ddim, plms, dpm"


def without(name):
  return {k: v for k, v in PNDM.items() if k != name}


def written(found):
  return write(Diffusion(**found.process), Options(**found.sampler), found.rest)


def of(**config):
  """(name, options) for a file with those fields."""
  found = read({**without("_class_name"), **config}, PATH)
  return sampler_of(Options(**found.sampler), found.rest)


def test_what_any_class_reads_comes_out_as_it_came_in():
  found = read(PNDM, PATH)
  assert found.rest == {"class_name": "PNDMScheduler", "skip_prk_steps": True}
  got = written(found)
  assert {k: got[k] for k in without("_diffusers_version")} == without("_diffusers_version")
  for name in ("PNDMScheduler", "DDIMScheduler"):
    kind = getattr(diffusers, name)
    want, again = kind.from_config(PNDM).config, kind.from_config(got).config
    assert {k: again[k] for k in want if k[0] != "_"} == {k: want[k] for k in want if k[0] != "_"}
  assert diffusers.DDIMScheduler.from_config(got).config.clip_sample is False


def test_latents_are_never_clipped_whatever_their_file_leaves_out():
  old = {k: v for k, v in PNDM.items() if k not in ("clip_sample", "steps_offset")}
  assert diffusers.DDIMScheduler.from_config(old).config.clip_sample is True
  found = of_latents(read(old, PATH))
  assert found == of_latents(read(PNDM, PATH))
  ddim = diffusers.DDIMScheduler.from_config(written(found))
  assert (ddim.config.clip_sample, ddim.config.steps_offset) == (False, 1)
  of_ddim = of_latents(read({**old, "_class_name": "DDIMScheduler"}, PATH)).sampler
  assert Options(**of_ddim) == Options(**found.sampler)


def test_every_class_has_its_sampler_or_a_line_that_says_which_to_take():
  for name in scheduler_config.CLASSES:
    rest = {"class_name": name, "skip_prk_steps": True}
    if name in EQUALS:
      assert sampler_of(Options(), rest)[0] == EQUALS[name].name
      continue
    with pytest.raises(ValueError, match=f"no sampler here walks as {name} does; choose") as error:
      sampler_of(Options(), rest)
    assert str(error.value).endswith(CHOICES)
  assert {equal.name for equal in EQUALS.values()} == sampling.SAMPLERS.keys()
  assert sampler_of(Options(), {}) == ("ddpm", Options())


@pytest.mark.parametrize("name", EQUALS)
def test_what_is_wanted_of_a_class_is_its_default(name):
  theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
  unlike = {k: theirs[k].default for k, v in EQUALS[name].wanted.items() if theirs[k].default != v}
  assert unlike == {
    "PNDMScheduler": {"skip_prk_steps": False},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
  }.get(name, {})


@pytest.mark.parametrize(
  ("name", "field", "value", "other"),
  [
    ("PNDMScheduler", "skip_prk_steps", False, True),
    ("DPMSolverMultistepScheduler", "solver_order", 3, 2),
    ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++", "dpmsolver++"),
    ("DPMSolverMultistepScheduler", "use_karras_sigmas", True, False),
    ("DPMSolverMultistepScheduler", "lambda_min_clipped", -5.1, "-inf"),
    ("EulerDiscreteScheduler", "timestep_spacing", "trailing", "leading"),
    ("EulerDiscreteScheduler", "final_sigmas_type", "sigma_min", "zero"),
  ],
)
def test_another_walk_of_a_class_is_refused_by_its_field(name, field, value, other):
  config = {"_class_name": name, "timestep_spacing": "leading", field: value}
  with pytest.raises(ValueError) as error:
    of(**config)
  line = str(error.value)
  assert line.startswith(f"no sampler here walks as {name} does with {field} {value!r}; set it to ")
  assert str(other) in line and line.endswith(CHOICES) and "\n" not in line


def test_a_field_that_is_null_is_the_default():
  got = of(_class_name="DPMSolverMultistepScheduler", use_karras_sigmas=None, variance_type=None)
  assert got[0] == "dpm"


def test_without_skip_prk_steps_a_pndm_is_another():
  with pytest.raises(ValueError, match="with skip_prk_steps False; set it to True"):
    of_pndm = read(without("skip_prk_steps"), PATH)
    sampler_of(Options(**of_pndm.sampler), of_pndm.rest)


NAMES = {
  "PNDMScheduler": "plms",
  "DDIMScheduler": "ddim",
  "DPMSolverMultistepScheduler": "dpm",
  "EulerDiscreteScheduler": "ddim",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_walk_of_a_class_is_that_of_its_sampler(name):
  # As a pipeline's scheduler is swapped: from_config of the file, saved, and read again.
  theirs = getattr(diffusers, name).from_config({**PNDM, "timestep_spacing": "leading"})
  found = read({**theirs.config, "_class_name": name}, PATH)
  sampler, options = sampler_of(Options(**found.sampler), found.rest)
  assert sampler == NAMES[name]
  start = np.random.default_rng(0).standard_normal((2, 4, 4, 4), np.float32)
  theirs.set_timesteps(10)
  x = torch.from_numpy(start) * theirs.init_noise_sigma
  for t in theirs.timesteps:
    scaled = theirs.scale_model_input(x, t)
    x = theirs.step(torch.tanh(2 * scaled + t / 500), t, x).prev_sample
  eps_fn = jax.tree_util.Partial(lambda x_t, t, c=None: jnp.tanh(2 * x_t + _column(t) / 500))
  process = Diffusion(**found.process)
  x_0 = sampling.sample(
    *(eps_fn, process, jax.random.key(0), jnp.asarray(start)),
    sampler=sampler,
    steps=10,
    options=options,
  )
  assert x.std() > 1
  np.testing.assert_allclose(x_0, x.numpy(), rtol=0, atol=1e-5 * float(x.abs().max()))


def _column(t):
  return t.reshape(-1, 1, 1, 1)
