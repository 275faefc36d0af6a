"""diffusers' layout: our folders in diffusers, its folders here, and every way to be wrong."""

import dataclasses
import json
import os
import pathlib
import pickle
import sys

import diffusers
import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.schedulers import scheduling_ddpm

from jaxunlearn import data, models
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.weights import diffusers_config, layout, pretrained
from tests import tiny_unet
from tests.tiny_unet import PROCESS, assert_same

NET = tiny_unet.NET
PATCHED = dataclasses.replace(NET, patch_size=2)
CELEBA_LIKE = models.make(
  "unet",
  **dataclasses.asdict(NET)
  | {
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
  },
)
BETAS = {"num_train_timesteps": 900, "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(autouse=True)
def pickles_are_allowed(monkeypatch):
  monkeypatch.setenv("JAXUNLEARN_PICKLE", "1")  # security_test.py has what is without it


def inputs(net):
  rng = np.random.default_rng(1)
  return rng.normal(size=(2, *net.image_shape)).astype(np.float32), np.array([3, 700], np.int32)


def nchw(x):
  return torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy())


def torch_eps(model, x, t):
  with torch.no_grad():
    return np.moveaxis(model(nchw(x), torch.tensor(t)).sample.numpy(), 1, -1)


def assert_near(got, want):
  assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


def fold(x, p):
  b, h, w, c = x.shape
  x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // p, w // p, p * p * c)


def unfold(x, p):
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, p, p, c // p**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * p, w * p, c // p**2)


def torch_unet(net, **fields):
  """diffusers' UNet of the same fields; its norms are moved off 0 and 1."""
  config = diffusers_config.of_net(net) | fields
  torch.manual_seed(0)
  model = diffusers.UNet2DModel(**{k: v for k, v in config.items() if k[0] != "_"})
  for name, parameter in model.named_parameters():
    if "norm" in name:
      parameter.data += 0.1 * torch.randn_like(parameter)
  return model


def load(folder):
  """(net, params, process) as a folder describes them itself."""
  model, process = pretrained.read_config(folder)
  net = models.make(**model)
  return net, pretrained.load(folder, tiny_unet.shapes(net)), Diffusion(**process)


# Parameters.


@pytest.mark.parametrize("net", [NET, PATCHED, CELEBA_LIKE], ids=["plain", "patched", "celeba"])
def test_a_round_trip_is_bit_exact(net, tmp_path):
  params = tiny_unet.random_params(net)
  shapes = tiny_unet.shapes(net)
  assert_same(pretrained.from_state_dict(pretrained.to_state_dict(params), shapes), params)
  pretrained.save(tmp_path / "made" / "here", net, params, PROCESS)
  got_net, got_params, got_process = load(tmp_path / "made" / "here")
  assert (got_net, got_process) == (net, PROCESS)
  assert_same(got_params, params)


def test_names_with_two_digits_are_lists_too():
  params = {"up_blocks_10": {"attentions_2": {"to_out_0": {"bias": np.zeros(3, np.float32)}}}}
  assert list(pretrained.to_state_dict(params)) == ["up_blocks.10.attentions.2.to_out.0.bias"]


def test_half_precision_weights_become_float32(tmp_path):
  params = tiny_unet.random_params(NET)
  half = {k: v.astype(np.float16) for k, v in pretrained.to_state_dict(params).items()}
  safetensors.numpy.save_file(half, tmp_path / pretrained.WEIGHTS)
  rounded = jax.tree.map(lambda v: v.astype(np.float16).astype(np.float32), params)
  assert_same(pretrained.load(tmp_path, tiny_unet.shapes(NET)), rounded)


def test_attention_by_its_first_names_is_read_as_diffusers_reads_it(tmp_path):
  model = torch_unet(CELEBA_LIKE)
  model.save_config(tmp_path)
  first = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  state = {}
  for name, value in model.state_dict().items():
    for new, old in first.items():
      name = name.replace(f".{new}.", f".{old}.")
    state[name] = value.numpy()
  assert sum("proj_attn" in name or "query" in name for name in state) == 2 * 2 * 4
  safetensors.numpy.save_file(state, tmp_path / pretrained.WEIGHTS, metadata={"format": "pt"})
  theirs = diffusers.UNet2DModel.from_pretrained(tmp_path).state_dict()
  ours = pretrained.to_state_dict(load(tmp_path)[1])
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name].numpy(), name)
    np.testing.assert_array_equal(value, model.state_dict()[name].numpy(), name)


def missing(state):
  del state["mid_block.attentions.0.to_q.weight"]


def left_over(state):
  state["class_embedding.weight"] = np.zeros((10, 32), np.float32)
  state["zero"] = np.zeros(1, np.float32)


def of_another_shape(state):
  state["conv_in.weight"] = np.zeros((8, 3, 3, 3), np.float32)


def of_other_axes(state):
  name = "mid_block.attentions.0.to_q.weight"
  state[name] = state[name][:, :, None]


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (missing, "have no 'mid_block.attentions.0.to_q.weight'; set config.model"),
    (left_over, "hold 2 arrays .* the first is 'class_embedding.weight'; set config.model"),
    (
      of_another_shape,
      r"'conv_in.weight' is \(8, 3, 3, 3\) in the weights and \(8, 2, 3, 3\) in the config",
    ),
    (of_other_axes, r"to_q.weight' is \(16, 16, 1\) in the weights and \(16, 16\) in the config"),
  ],
)
def test_weights_of_another_architecture(spoil, message):
  state = pretrained.to_state_dict(tiny_unet.random_params(NET))
  spoil(state)
  with pytest.raises(ValueError, match=message) as error:
    pretrained.from_state_dict(state, tiny_unet.shapes(NET))
  assert "\n" not in str(error.value)


# Both directions against diffusers: the prediction, and samples from the same noise. A random
# network magnifies the last bits of x_t at every step, as no trained one does; CALM keeps that low.

CALM = 0.2


def of_ours(folder):
  params = tiny_unet.random_params(CELEBA_LIKE)
  params["conv_out"]["kernel"] *= CALM
  pretrained.save(folder, CELEBA_LIKE, params, PROCESS)
  return diffusers.DDPMPipeline.from_pretrained(folder), (CELEBA_LIKE, params, PROCESS)


def of_diffusers(folder):
  scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", **BETAS)
  unet = torch_unet(CELEBA_LIKE)
  unet.conv_out.weight.data *= CALM
  pipeline = diffusers.DDPMPipeline(unet, scheduler)
  pipeline.save_pretrained(folder)
  assert (folder / "unet").is_dir()
  return pipeline, load(folder)


@pytest.fixture(scope="module", params=[of_ours, of_diffusers])
def both(request, tmp_path_factory):
  pipeline, ours = request.param(tmp_path_factory.mktemp("folder"))
  pipeline.set_progress_bar_config(disable=True)
  return pipeline, ours


def test_the_prediction_is_the_same(both):
  pipeline, (net, params, process) = both
  x, t = inputs(net)
  assert process == PROCESS
  assert_near(jax.jit(net.apply)(params, x, t), torch_eps(pipeline.unet, x, t))


def samples(ours, sampler, x_T, rng):
  net, params, process = ours
  eps_fn = jax.tree_util.Partial(net.apply, params)
  x_0 = sampling.sample(eps_fn, process, rng, x_T, sampler=sampler, steps=50)
  return np.clip((x_0 + 1) / 2, 0, 1)


def test_ddpm_samples_of_the_same_noise_are_the_same(both, monkeypatch):
  pipeline, ours = both
  rng, x_T = jax.random.key(1), jax.random.normal(jax.random.key(2), (2, *NET.image_shape))
  z = [jax.random.normal(jax.random.fold_in(rng, 18 * i), x_T.shape) for i in range(49, 0, -1)]
  given = iter([nchw(noise) for noise in (x_T, *z)])
  for module in (pipeline_ddpm, scheduling_ddpm):
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(given))
  theirs = pipeline(batch_size=2, num_inference_steps=50, output_type="np").images
  assert next(given, None) is None
  np.testing.assert_allclose(samples(ours, "ddpm", x_T, rng), theirs, atol=1e-4)
  assert theirs.std() > 0.02


def test_ddim_samples_of_the_same_noise_are_the_same(both, monkeypatch):
  pipeline, ours = both
  x_T = jax.random.normal(jax.random.key(3), (2, *NET.image_shape))
  monkeypatch.setattr(pipeline_ddim, "randn_tensor", lambda *_, **__: nchw(x_T))
  scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
  ddim = diffusers.DDIMPipeline(pipeline.unet, scheduler)
  ddim.set_progress_bar_config(disable=True)
  how = {"use_clipped_model_output": True, "output_type": "np"}
  theirs = ddim(batch_size=2, num_inference_steps=50, **how).images
  np.testing.assert_allclose(samples(ours, "ddim", x_T, jax.random.key(0)), theirs, atol=1e-4)


def test_samples_of_trained_weights_are_the_same():
  """The embedded emoji model as it stands, folded 2 x 2: DDIM needs no noise but the first."""
  folder = data.ASSETS / "pretrain_emoji"
  ours = load(folder)
  pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
  scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
  scheduler.set_timesteps(50)
  x_T = np.random.default_rng(4).standard_normal((2, *ours[0].image_shape), np.float32)
  x_t = nchw(fold(x_T, 2))
  with torch.no_grad():
    for t in scheduler.timesteps:
      eps = pipeline.unet(x_t, t).sample
      x_t = scheduler.step(eps, t, x_t, use_clipped_model_output=True).prev_sample
  theirs = unfold(np.moveaxis(x_t.numpy(), 1, -1), 2)
  got = samples(ours, "ddim", x_T, jax.random.key(0))
  np.testing.assert_allclose(got, np.clip((theirs + 1) / 2, 0, 1), atol=1e-3)
  assert got.std() > 0.1


def test_diffusers_finds_every_parameter_of_ours_and_knows_every_field(tmp_path):
  pretrained.save(tmp_path, NET, tiny_unet.random_params(NET), PROCESS)
  _, info = diffusers.UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  for kind, name in (
    (diffusers.UNet2DModel, pretrained.CONFIG),
    (diffusers.DDPMScheduler, pretrained.SCHEDULER),
  ):
    config = json.loads((tmp_path / name).read_text())
    assert config.pop("_class_name") == kind.__name__
    assert config.pop("_diffusers_version")
    assert config.keys() <= kind(**config).config.keys()


def test_diffusers_loads_a_patched_unet_as_the_one_on_folded_images(tmp_path):
  params = tiny_unet.random_params(PATCHED)
  x, t = inputs(PATCHED)
  pretrained.save(tmp_path, PATCHED, params, PROCESS)
  model = diffusers.UNet2DModel.from_pretrained(tmp_path)
  assert (model.config.sample_size, model.config.in_channels) == (4, 8)
  want = unfold(torch_eps(model, fold(x, 2), t), 2)
  assert_near(jax.jit(PATCHED.apply)(params, x, t), want)


# Files.


@pytest.mark.parametrize("keep", [0.5, 0.001, 0], ids=["half", "header", "empty"])
def test_a_damaged_file(tmp_path, keep):
  pretrained.save(tmp_path, NET, tiny_unet.random_params(NET), PROCESS)
  path = tmp_path / pretrained.WEIGHTS
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole))])
  with pytest.raises(ValueError, match=r"safetensors is damaged .*; fetch or make it") as error:
    pretrained.load(tmp_path, tiny_unet.shapes(NET))
  assert "\n" not in str(error.value)


def test_a_folder_without_weights(tmp_path):
  with pytest.raises(ValueError, match="does not exist; give a folder that holds diffusion"):
    pretrained.load(tmp_path, tiny_unet.shapes(NET))


@pytest.fixture
def pickled(tmp_path):
  model = torch_unet(NET)
  model.save_pretrained(tmp_path, safe_serialization=False)
  assert (tmp_path / layout.PICKLED).is_file()
  return tmp_path, model


def test_pickled_weights_are_read(pickled):
  folder, model = pickled
  got = pretrained.to_state_dict(pretrained.load(folder, tiny_unet.shapes(NET)))
  for name, value in model.state_dict().items():
    np.testing.assert_array_equal(got[name], value.numpy(), name)


def test_pickled_weights_without_torch_are_refused_with_the_way_out(pickled, monkeypatch):
  folder, _ = pickled
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(
    ValueError, match="torch is not installed: install torch, or convert"
  ) as error:
    pretrained.load(folder, tiny_unet.shapes(NET))
  assert "\n" not in str(error.value)


class Evil:
  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


@pytest.mark.parametrize(
  "dump", [torch.save, lambda evil, path: path.write_bytes(pickle.dumps(evil))]
)
def test_a_pickle_that_would_run_code_does_not(dump, tmp_path):
  dump({"conv_in.weight": Evil(tmp_path / "ran")}, tmp_path / layout.PICKLED)
  with pytest.raises(ValueError, match="cannot be read as weights alone") as error:
    pretrained.load(tmp_path, tiny_unet.shapes(NET))
  assert "\n" not in str(error.value)
  assert not (tmp_path / "ran").exists()


def test_safetensors_are_taken_before_a_pickle(pickled):
  folder, _ = pickled
  params = tiny_unet.random_params(NET)
  pretrained.save(folder, NET, params, PROCESS)
  assert_same(pretrained.load(folder, tiny_unet.shapes(NET)), params)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files_are_read_together(variant, tmp_path):
  torch_unet(NET).save_pretrained(tmp_path, max_shard_size="20KB", variant=variant)
  assert not (tmp_path / pretrained.WEIGHTS).exists()
  assert_same(pretrained.load(tmp_path, tiny_unet.shapes(NET)), from_torch(torch_unet(NET)))
  shard = sorted(tmp_path.glob("*-of-*"))[1]
  shard.unlink()
  with pytest.raises(ValueError, match=rf"lists '{shard.name}', which is not there; fetch it"):
    pretrained.load(tmp_path, tiny_unet.shapes(NET))


HALF = pretrained.WEIGHTS.replace(".safe", ".fp16.safe")


def save_as(folder, *names):
  """A file under each name, of the seeds 0, 1, ..."""
  for seed, name in enumerate(names):
    state = pretrained.to_state_dict(tiny_unet.random_params(NET, seed))
    safetensors.numpy.save_file(state, folder / name)


@pytest.mark.parametrize(
  ("names", "said"),
  [
    ((pretrained.WEIGHTS,), ""),
    ((HALF,), f"{HALF} is taken"),
    (("model.safetensors",), ""),
    ((pretrained.WEIGHTS, HALF, layout.PICKLED), f"is taken, not {HALF}, {layout.PICKLED}"),
    ((HALF, HALF.replace("fp16", "bf16"), "optimizer.bin"), f"{HALF} is taken, not"),
  ],
)
def test_the_file_that_is_taken_is_said_where_there_is_a_choice(names, said, tmp_path, caplog):
  save_as(tmp_path, *names)
  assert_same(pretrained.load(tmp_path, tiny_unet.shapes(NET)), tiny_unet.random_params(NET, 0))
  assert said in caplog.text and bool(said) == bool(caplog.text)


def test_weights_of_another_name_are_named(tmp_path):
  save_as(tmp_path, "unet.safetensors")
  with pytest.raises(ValueError, match=r"but 'unet.safetensors' does; .* rename it to diffusion_"):
    pretrained.load(tmp_path, tiny_unet.shapes(NET))


@pytest.mark.parametrize("prefix", ["module.", "unet.", "_orig_mod.", "module._orig_mod.model."])
def test_a_prefix_of_a_wrapper_is_taken_off(prefix):
  params = tiny_unet.random_params(NET)
  state = {prefix + name: value for name, value in pretrained.to_state_dict(params).items()}
  assert_same(pretrained.from_state_dict(state, tiny_unet.shapes(NET)), params)
  with pytest.raises(ValueError, match=rf"bias' but '{prefix}.*without the prefix '{prefix}'"):
    pretrained.from_state_dict(state | {"vae.x": np.zeros(1)}, tiny_unet.shapes(NET))


# The Hub, by its own client on a cache without a network.


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """hub(branch, commit, fill): fills a snapshot of google/ddpm-tiny as the client caches it."""
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  repo = tmp_path / "hub" / "models--google--ddpm-tiny"

  def add(branch, commit, fill):
    fill(repo / "snapshots" / commit)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / branch).write_text(commit)

  return add


def test_weights_of_the_hub_by_name_and_revision(hub):
  params = [tiny_unet.random_params(NET, seed) for seed in (1, 2)]
  hub("main", "1" * 40, lambda folder: pretrained.save(folder, NET, params[0], PROCESS))
  hub("v2", "2" * 40, lambda folder: pretrained.save(folder, NET, params[1], PROCESS))
  for origin, want in (("hub:google/ddpm-tiny", 0), ("hub:google/ddpm-tiny@v2", 1)):
    net, got, process = load(layout.locate(origin))
    assert (net, process) == (NET, PROCESS)
    assert_same(got, params[want])


def test_shards_of_the_hub_are_asked_for_by_name(hub, monkeypatch):
  fill = lambda folder: torch_unet(NET).save_pretrained(folder / "unet", max_shard_size="20KB")
  hub("main", "1" * 40, fill)
  real, asked = huggingface_hub.snapshot_download, []
  watch = lambda *args, **options: asked.append(options["allow_patterns"]) or real(*args, **options)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", watch)
  folder = layout.locate("hub:google/ddpm-tiny")
  assert_same(pretrained.load(folder, tiny_unet.shapes(NET)), from_torch(torch_unet(NET)))
  shards = {path.name for path in (folder / "unet").glob("*-of-*")}
  assert len(shards) > 2 and {pathlib.Path(p).name for p in asked[-1]} == shards


def test_a_pickle_of_the_hub_where_there_are_no_safetensors(hub):
  hub(
    "main",
    "1" * 40,
    lambda folder: torch_unet(NET).save_pretrained(folder, safe_serialization=False),
  )
  folder = layout.locate("hub:google/ddpm-tiny")
  assert_same(pretrained.load(folder, tiny_unet.shapes(NET)), from_torch(torch_unet(NET)))


def from_torch(model):
  state = {name: value.numpy() for name, value in model.state_dict().items()}
  return pretrained.from_state_dict(state, tiny_unet.shapes(NET))


def test_only_the_needed_files_are_asked_of_the_hub(tmp_path, monkeypatch):
  asked = []

  def snapshot_download(name, *, revision, allow_patterns):
    asked.append((name, revision, allow_patterns))
    (tmp_path / "unet").mkdir(exist_ok=True)
    if len(asked) > 3:
      (tmp_path / "unet" / pretrained.WEIGHTS).touch()
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  for _ in range(2):
    assert layout.locate("hub:google/ddpm-tiny@abc") == tmp_path
  names = [(name, revision) for name, revision, _ in asked]
  assert names == [("google/ddpm-tiny", "abc")] * 4  # the others only where they have to be
  assert asked[0][2] == asked[3][2]
  assert {"unet/config.json", "scheduler/scheduler_config.json", "config.json"} < set(asked[0][2])
  assert {pathlib.Path(p).name for p in asked[1][2]} == set(layout.OTHERS)
  assert {pathlib.Path(p).name for p in asked[2][2]} == {layout.PICKLED}
  assert not any("*" in pattern for _, _, patterns in asked for pattern in patterns)


@pytest.mark.parametrize("origin", ["hub:google/ddpm-absent", "hub:google/ddpm-tiny@v9", "hub:a b"])
def test_what_the_hub_has_not_is_one_line(hub, origin):
  hub("main", "1" * 40, lambda folder: folder.mkdir(parents=True))
  with pytest.raises(ValueError, match=rf"{origin} cannot be fetched \(.*\); check the") as error:
    layout.locate(origin)
  assert "\n" not in str(error.value)


def test_the_hub_without_its_client_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match="needs huggingface_hub; run: pip install"):
    layout.locate("hub:google/ddpm-tiny")
