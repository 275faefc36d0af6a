"""A run's config and its init_from: what is taken from the weights, and what is refused."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from configs import common
from jaxunlearn import build, models
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.weights import diffusers_config, pretrained
from tests import tiny_config, tiny_unet
from tests.tiny_unet import NET, PROCESS, assert_same, write


@pytest.fixture
def tiny(tmp_path):
  """A run's locked config, and a folder of its own model under another process."""
  config = tiny_config.get_config()
  net = models.make(**config.model)
  pretrained.save(tmp_path, net, tiny_unet.random_params(net), PROCESS)
  config.init_from = str(tmp_path)
  return config, net, tmp_path


def test_a_run_takes_model_and_process_from_its_weights(tiny):
  config, net, _ = tiny
  config.model = ConfigDict({"name": "pretrained"})
  config.lock()
  setup = build.build(config)
  assert (setup.net, setup.process) == (net, PROCESS)
  assert_same(build.start_params(setup), tiny_unet.random_params(net))
  assert config.is_locked
  written = json.loads(config.to_json())
  assert models.make(**written["model"]) == net
  assert Diffusion(**written["process"]) == PROCESS
  assert sampling.Options(**written["sampler"]) == sampling.Options()
  again = build.build(config)  # as a run that goes on
  assert json.loads(config.to_json()) == written and again.net == net


def test_the_type_to_compute_in_is_the_users(tiny):
  config, net, _ = tiny
  config.model = ConfigDict({"name": "pretrained", "dtype": "bfloat16"})
  pretrained.adopt(config)
  assert models.make(**config.model) == dataclasses.replace(net, dtype="bfloat16")


def test_a_run_takes_model_and_process_from_another_run(tmp_path):
  config = common.get_config()
  config.init_from, config.model = str(tmp_path), ConfigDict({"name": "pretrained"})
  (tmp_path / "checkpoints").mkdir()
  run = {"model": {"name": "unet", **dataclasses.asdict(NET)}}
  run["process"] = dataclasses.asdict(PROCESS)
  run["sampler"], run["scheduler"] = {"variance_type": "fixed_large"}, {"class_name": "A"}
  write(tmp_path, "config.json", **run)
  pretrained.adopt(config)
  assert (models.make(**config.model), Diffusion(**config.process)) == (NET, PROCESS)
  assert config.sampler.variance_type == "fixed_large"
  assert config.scheduler.to_dict() == {"class_name": "A"}


EULER = {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1, "use_karras_sigmas": True}
PLACES = ["", "unet", "unet_ema", "checkpoint-5", "checkpoint-5/unet", "checkpoint-5/unet_ema"]


@pytest.mark.parametrize("place", PLACES)
def test_the_scheduler_of_a_pipeline_is_found_from_any_of_its_parts(place, tmp_path, caplog):
  write(tmp_path / "scheduler", "scheduler_config.json", **EULER, beta_schedule="scaled_linear")
  for part in PLACES:
    if "unet" in part:
      write(tmp_path / part, "config.json", **diffusers_config.of_net(NET))
  config = common.get_config()
  config.init_from, config.model = str(tmp_path / place), ConfigDict({"name": "pretrained"})
  config.sampler.timestep_spacing = "trailing"  # the user's
  pretrained.adopt(config)
  assert models.make(**config.model) == NET
  assert Diffusion(**config.process) == Diffusion("scaled_linear")
  want = sampling.Options(timestep_spacing="trailing", steps_offset=1)
  assert sampling.Options(**config.sampler) == want
  rest = {"class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
  assert config.scheduler.to_dict() == rest and not caplog.text


def test_where_there_is_no_scheduler_the_process_is_said(tmp_path, caplog):
  write(tmp_path / "scheduler", "scheduler_config.json", **EULER)  # of a neighbour
  write(tmp_path / "mine", "config.json", **diffusers_config.of_net(NET))
  config = common.get_config()
  config.init_from, config.model = str(tmp_path / "mine"), ConfigDict({"name": "pretrained"})
  pretrained.adopt(config)
  assert "has no scheduler_config.json" in caplog.text
  assert "schedule='linear', T=1000, beta_1=0.0001, beta_T=0.02" in caplog.text


def test_a_damaged_config_of_a_run_is_one_line(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  config = common.get_config()
  config.init_from, config.model = str(tmp_path), ConfigDict({"name": "pretrained"})
  for text in ("[]", "{", "{}", '{"model": 3}', "\ufeff{"):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json") as error:
      pretrained.adopt(config)
    assert "\n" not in str(error.value)


def test_a_process_that_the_weights_do_not_tell_is_the_configs(tiny):
  config, _, folder = tiny
  (folder / "scheduler_config.json").unlink()
  pretrained.adopt(config)
  config.model = ConfigDict({"name": "pretrained"})
  pretrained.adopt(config)
  assert Diffusion(**config.process) == Diffusion()


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    ({"init_from": ""}, "init_from '' has no config.json; name weights in"),
    ({"init_from": "hub"}, "init_from 'hub' is not a folder; give a run's"),
    ({"model": {"name": "pretrained", "freq_shift": 1}}, "sets freq_shift too; drop one"),
  ],
)
def test_a_pretrained_model_that_cannot_be_taken(overrides, message, tiny):
  config, _, _ = tiny
  config.model = ConfigDict({"name": "pretrained"})
  config.update(overrides)
  with pytest.raises(ValueError, match=message) as error:
    build.build(config)
  assert "\n" not in str(error.value)


OTHER_MEANING = {
  "downsample_padding": 0,
  "freq_shift": 1,
  "flip_sin_to_cos": False,
  "norm_eps": 1e-6,
  "norm_num_groups": 2,
  "attention_head_dim": 2,
}


@pytest.mark.parametrize("field", OTHER_MEANING)
def test_a_spelt_out_model_that_is_another_function_is_refused(field, tiny):
  config, net, _ = tiny
  config.process.update(dataclasses.asdict(PROCESS))
  pretrained.adopt(config)
  config.model[field] = OTHER_MEANING[field]
  with pytest.raises(ValueError, match=f"config.model.{field} is {OTHER_MEANING[field]} ") as error:
    build.build(config)
  assert f"were made with {getattr(net, field)}; set that, or config.model to" in str(error.value)


@pytest.mark.parametrize("field", ["schedule", "T", "beta_1", "beta_T"])
def test_another_process_is_refused(field, tiny):
  config, _, _ = tiny
  before = getattr(Diffusion(), field)
  config.process.update(dataclasses.asdict(PROCESS) | {field: before})
  with pytest.raises(ValueError, match=rf"config.process.{field} is {before!r} and the weights of"):
    build.build(config)


def test_image_size_and_type_are_free(tiny):
  config, _, _ = tiny
  config.process.update(dataclasses.asdict(PROCESS))
  config.model.update(sample_size=32, dtype="bfloat16")
  pretrained.adopt(config)
  assert config.model.sample_size == 32
