"""diffusers' configs: its defaults, its old files, and every field that we have not."""

import dataclasses
import inspect
import pathlib

import diffusers
import numpy as np
import pytest

from configs import siss_celeba
from jaxunlearn import models
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.weights import diffusers_config, pretrained, scheduler_config
from tests import tiny_unet
from tests.tiny_unet import PROCESS, write

NET = tiny_unet.NET


def own(kind):
  """The fields of a class of diffusers, with their defaults."""
  return {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}


def test_our_defaults_are_diffusers_own():
  unet = own(diffusers.UNet2DModel)
  ours = {**diffusers_config.FREE, **diffusers_config.FIXED}
  assert unet.keys() == ours.keys() | {"self", "num_train_timesteps"}
  assert ours == {name: unet[name] for name in ours}


OPTIONS = {field.name for field in dataclasses.fields(sampling.Options)}


@pytest.mark.parametrize("name", scheduler_config.CLASSES)
def test_the_defaults_of_each_scheduler_are_diffusers_own(name):
  theirs = own(getattr(diffusers, name))
  if theirs.get("variance_type", "") is None:  # of a solver: what the model predicts
    del theirs["variance_type"]
  assert scheduler_config.NOISE | scheduler_config.CLASSES[name] == {
    k: v for k, v in theirs.items() if k in OPTIONS | scheduler_config.NOISE.keys()
  }
  fixed = scheduler_config.FIXED
  assert all(theirs[k] == v for k, v in fixed.items() if k in theirs)
  if name == "DDPMScheduler":
    left = theirs.keys() - OPTIONS - scheduler_config.NOISE.keys() - fixed.keys()
    assert left == {"self", "dynamic_thresholding_ratio", "sample_max_value"}  # of thresholding


def test_the_defaults_of_our_samplers_are_those_of_ddpm_and_ddim():
  both = scheduler_config.CLASSES["DDPMScheduler"] | scheduler_config.CLASSES["DDIMScheduler"]
  assert sampling.Options() == sampling.Options(**both)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_a_file_of_ddim_means_its_walk_and_does_not_say_so(name):
  read = lambda **config: scheduler_config.read(
    {"_class_name": name, **config}, pathlib.Path("file")
  )
  found, key = read(), "use_clipped_model_output"
  options = sampling.Options(**found.sampler)
  assert options.use_clipped_model_output == (name == "DDPMScheduler")
  assert key not in scheduler_config.write(Diffusion(), options, found.rest)
  other = dataclasses.replace(options, use_clipped_model_output=name == "DDIMScheduler")
  said = scheduler_config.write(Diffusion(), other, found.rest)
  assert sampling.Options(**read(**said).sampler) == other


GIVEN = {
  "DDPMScheduler": {"variance_type": "fixed_large", "clip_sample": False, "steps_offset": 1},
  "DDIMScheduler": {"set_alpha_to_one": False, "timestep_spacing": "trailing"},
  "PNDMScheduler": {"skip_prk_steps": True, "trained_betas": [0.1, 0.2], "num_train_timesteps": 2},
  "EulerDiscreteScheduler": {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"},
  "HeunDiscreteScheduler": {"clip_sample": True, "clip_sample_range": 2.0},
  "DPMSolverMultistepScheduler": {"beta_schedule": "squaredcos_cap_v2", "solver_order": 3},
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_scheduler_comes_out_as_it_came_in(name, tmp_path):
  kind = getattr(diffusers, name)
  theirs = kind(**GIVEN[name])
  pretrained.save(tmp_path, NET, tiny_unet.random_params(NET), Diffusion())
  theirs.save_pretrained(tmp_path)
  found = pretrained.read_scheduler(tmp_path)
  process, sampler = Diffusion(**found.process), sampling.Options(**found.sampler)
  np.testing.assert_allclose(process.abar, theirs.alphas_cumprod.numpy(), rtol=2e-5)
  written = scheduler_config.write(process, sampler, found.rest)
  again = kind.from_config(written)
  assert dict(again.config) | {"_use_default_values": 0} == dict(theirs.config) | {
    "_use_default_values": 0
  }


def test_a_class_conditional_unet_is_read_and_written(tmp_path):
  theirs = diffusers_config.of_net(NET) | {"num_class_embeds": 3, "act_fn": "swish"}
  theirs |= {
    "time_embedding_dim": 32,
    "downsample_type": None,
    "resnet_time_scale_shift": "default",
  }
  theirs["down_block_types"] = ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]
  theirs |= {"decay": 0.99, "optimization_step": 7, "use_ema_warmup": True, "inv_gamma": 1.0}
  write(tmp_path, "config.json", **theirs)
  net = models.make(**pretrained.read_config(tmp_path)[0])
  assert net == dataclasses.replace(NET, num_class_embeds=3, classes=(3,))
  config = diffusers_config.of_net(net)
  assert config["_class_name"] == "UNet2DModel" and config["num_class_embeds"] == 3


def test_an_old_config_as_google_stored_it(tmp_path):
  model = {k: list(v) if isinstance(v, tuple) else v for k, v in siss_celeba.model().items()}
  old = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.1.1",
    "act_fn": "silu",
    "center_input_sample": False,
    "mid_block_scale_factor": 1,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
  }
  write(tmp_path, "config.json", **old, **model)
  scheduler = {"beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001}
  scheduler |= {"clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None}
  write(tmp_path, "scheduler_config.json", _class_name="DDPMScheduler", **scheduler)
  got, process = pretrained.read_config(tmp_path)
  assert models.make(**got) == models.make("unet", **siss_celeba.model())
  assert Diffusion(**process) == Diffusion()


def test_fields_that_a_file_lacks_have_diffusers_defaults(tmp_path):
  write(tmp_path, "config.json", _class_name="UNet2DModel", sample_size=32, new_field=None)
  model, process = pretrained.read_config(tmp_path)
  default = diffusers.UNet2DModel.__init__.__wrapped__
  want = {name: p.default for name, p in inspect.signature(default).parameters.items()}
  assert model == {"name": "unet"} | {name: want[name] for name in diffusers_config.FREE} | {
    "sample_size": 32,
    "patch_size": 1,
    "classes": (),
  }
  assert process == {}
  write(tmp_path, "scheduler_config.json", _class_name="DDIMScheduler", set_alpha_to_one=True)
  assert Diffusion(**pretrained.read_config(tmp_path)[1]) == Diffusion()


UNET_REFUSED = {
  "act_fn": "mish",
  "center_input_sample": True,
  "class_embed_type": "timestep",
  "resnet_time_scale_shift": "spatial",
  "out_channels": 4,
  "mid_block_scale_factor": 2,
  "mid_block_type": None,
  "time_embedding_type": "fourier",
  "downsample_type": "fir",
  "upsample_type": "fir",
  "add_attention": False,
  "attn_norm_num_groups": 5,
  "in_channels": None,
  "new_field": 3,
  "sample_size": [8, 15],
  "down_block_types": ["DownBlock2D", "SkipDownBlock2D"],
  "_class_name": "UNet2DConditionModel",
}


@pytest.mark.parametrize("field", UNET_REFUSED)
def test_a_model_that_we_have_not_is_refused_by_its_value(field, tmp_path):
  config = diffusers_config.of_net(NET) | {field: UNET_REFUSED[field]}
  write(tmp_path, "config.json", **config)
  with pytest.raises(ValueError) as error:
    pretrained.read_config(tmp_path)
  line = str(error.value)
  assert "\n" not in line and str(tmp_path / "config.json") in line
  value = UNET_REFUSED[field]
  if field == "in_channels":
    return
  assert str(value[-1] if field == "down_block_types" else value).strip("[]") in line


PROCESS_REFUSED = {
  "beta_schedule": "laplace",
  "trained_betas": [0.1, 1.2],
  "num_train_timesteps": 0,
  "variance_type": "learned_range",
  "thresholding": True,
  "timestep_spacing": "log",
  "prediction_type": "sample",
  "rescale_betas_zero_snr": True,
  "beta_end": 1.5,
  "_class_name": "ScoreSdeVeScheduler",
}


@pytest.mark.parametrize("field", PROCESS_REFUSED)
def test_a_process_that_we_have_not_is_refused_by_its_value(field, tmp_path):
  write(tmp_path / "unet", "config.json", **diffusers_config.of_net(NET))
  config = scheduler_config.write(PROCESS, sampling.Options(), {})
  config |= {"num_train_timesteps": 2} if field == "trained_betas" else {}
  config[field] = PROCESS_REFUSED[field]
  write(tmp_path / "scheduler", "scheduler_config.json", **config)
  with pytest.raises(ValueError) as error:
    pretrained.read_config(tmp_path)
  line = str(error.value)
  assert "\n" not in line and "scheduler_config.json: " in line
  value = PROCESS_REFUSED[field]
  assert str(value[-1] if field == "trained_betas" else value) in line


@pytest.mark.parametrize("text", [None, "{"])
def test_a_config_that_cannot_be_read(text, tmp_path):
  if text:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"cannot read .*config.json \(.*\); fetch or make"):
    pretrained.read_config(tmp_path)
