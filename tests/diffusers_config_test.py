"""diffusers' configs: its defaults, its old files, and every field that we have not."""

import inspect
import logging

import diffusers
import pytest

from configs import siss_celeba
from jaxunlearn import models
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.weights import diffusers_config, pretrained
from tests import tiny_unet
from tests.tiny_unet import PROCESS, write

NET = tiny_unet.NET


def test_our_defaults_are_diffusers_own():
  own = lambda kind: {
    name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()
  }
  unet, scheduler = own(diffusers.UNet2DModel), own(diffusers.DDPMScheduler)
  ours = {**diffusers_config.FREE, **diffusers_config.FIXED}
  assert unet.keys() == ours.keys() | {"self", "num_train_timesteps"}
  assert ours == {name: unet[name] for name in ours}
  betas = dict(diffusers_config.PROCESS.values())
  ours = {**betas, **diffusers_config.PROCESS_FIXED, **diffusers_config.SAMPLING}
  assert ours == {name: scheduler[name] for name in ours}
  left = scheduler.keys() - ours.keys()
  assert left == {"self", "dynamic_thresholding_ratio", "sample_max_value"}  # of thresholding


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
  "num_class_embeds": 10,
  "resnet_time_scale_shift": "scale_shift",
  "mid_block_scale_factor": 2,
  "mid_block_type": None,
  "time_embedding_type": "fourier",
  "time_embedding_dim": 64,
  "downsample_type": "resnet",
  "upsample_type": "resnet",
  "add_attention": False,
  "attn_norm_num_groups": 8,
  "new_field": 3,
  "sample_size": [8, 16],
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
  assert str(value[-1] if field == "down_block_types" else value).strip("[]") in line


PROCESS_REFUSED = {
  "beta_schedule": "squaredcos_cap_v2",
  "trained_betas": [0.1, 0.2],
  "prediction_type": "v_prediction",
  "rescale_betas_zero_snr": True,
  "beta_end": 1.5,
  "_class_name": "ScoreSdeVeScheduler",
}


@pytest.mark.parametrize("field", PROCESS_REFUSED)
def test_a_process_that_we_have_not_is_refused_by_its_value(field, tmp_path):
  write(tmp_path / "unet", "config.json", **diffusers_config.of_net(NET))
  config = diffusers_config.of_process(PROCESS) | {field: PROCESS_REFUSED[field]}
  write(tmp_path / "scheduler", "scheduler_config.json", **config)
  with pytest.raises(ValueError) as error:
    pretrained.read_config(tmp_path)
  line = str(error.value)
  assert "\n" not in line and "scheduler_config.json: " in line
  assert str(PROCESS_REFUSED[field]) in line


def test_what_changes_no_step_of_training_is_only_warned_of(tmp_path, caplog):
  write(tmp_path, "config.json", **diffusers_config.of_net(NET))
  process = diffusers_config.of_process(PROCESS) | {"variance_type": "fixed_large"}
  write(tmp_path, "scheduler_config.json", **process)
  with caplog.at_level(logging.WARNING):
    model, process = pretrained.read_config(tmp_path)
  assert (models.make(**model), Diffusion(**process)) == (NET, PROCESS)
  assert "variance_type is 'fixed_large'; sampling here has 'fixed_small'" in caplog.text


@pytest.mark.parametrize("text", [None, "{"])
def test_a_config_that_cannot_be_read(text, tmp_path):
  if text:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"cannot read .*config.json \(.*\); fetch or make"):
    pretrained.read_config(tmp_path)
