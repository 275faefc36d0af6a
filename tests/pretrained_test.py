"""diffusers' layout: our folders in diffusers, its folders here, and every way to be wrong."""

import dataclasses
import json

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxunlearn import pretrained
from tests import tiny_unet

PATCHED = dataclasses.replace(tiny_unet.NET, patch_size=2)


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b)


def inputs(net):
  rng = np.random.default_rng(1)
  return rng.normal(size=(2, *net.image_shape)).astype(np.float32), np.array([3, 700], np.int32)


def torch_eps(model, x, t):
  with torch.no_grad():
    y = model(torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1))), torch.tensor(t)).sample
  return np.moveaxis(y.numpy(), 1, -1)


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


@pytest.mark.parametrize("net", [tiny_unet.NET, PATCHED], ids=["plain", "patched"])
def test_a_round_trip_is_bit_exact(net, tmp_path):
  params = tiny_unet.random_params(net)
  shapes = tiny_unet.shapes(net)
  assert_same(pretrained.from_state_dict(pretrained.to_state_dict(params), shapes), params)
  pretrained.save(tmp_path / "made" / "here", net, params)
  assert_same(pretrained.load(tmp_path / "made" / "here", shapes), params)


def test_names_with_two_digits_are_lists_too():
  params = {"up_blocks_10": {"attentions_2": {"to_out_0": {"bias": np.zeros(3, np.float32)}}}}
  assert list(pretrained.to_state_dict(params)) == ["up_blocks.10.attentions.2.to_out.0.bias"]


def test_diffusers_loads_what_we_save(tmp_path):
  net, params = tiny_unet.NET, tiny_unet.random_params(tiny_unet.NET)
  x, t = inputs(net)
  pretrained.save(tmp_path, net, params)
  model, info = diffusers.UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert_near(jax.jit(net.apply)(params, x, t), torch_eps(model, x, t))


def test_diffusers_loads_a_patched_unet_as_the_one_on_folded_images(tmp_path):
  params = tiny_unet.random_params(PATCHED)
  x, t = inputs(PATCHED)
  pretrained.save(tmp_path, PATCHED, params)
  model = diffusers.UNet2DModel.from_pretrained(tmp_path)
  assert (model.config.sample_size, model.config.in_channels) == (4, 8)
  want = unfold(torch_eps(model, fold(x, 2), t), 2)
  assert_near(jax.jit(PATCHED.apply)(params, x, t), want)


def test_we_load_what_diffusers_saves(tmp_path):
  net = tiny_unet.NET
  x, t = inputs(net)
  fields = dataclasses.asdict(net)
  fields = {name: fields[name] for name in fields.keys() - {"dtype", "patch_size"}}
  torch.manual_seed(0)
  model = diffusers.UNet2DModel(**fields)
  model.save_pretrained(tmp_path)
  params = pretrained.load(tmp_path, tiny_unet.shapes(net))
  assert_near(jax.jit(net.apply)(params, x, t), torch_eps(model, x, t))


def test_the_saved_config_is_diffusers_own(tmp_path):
  pretrained.save(tmp_path, tiny_unet.NET, tiny_unet.random_params(tiny_unet.NET))
  config = json.loads((tmp_path / "config.json").read_text())
  assert config.pop("_class_name") == "UNet2DModel"
  assert config.pop("_diffusers_version")
  assert config.keys() < diffusers.UNet2DModel(**config).config.keys()


def test_half_precision_weights_become_float32(tmp_path):
  params = tiny_unet.random_params(tiny_unet.NET)
  half = {k: v.astype(np.float16) for k, v in pretrained.to_state_dict(params).items()}
  safetensors.numpy.save_file(half, tmp_path / pretrained.WEIGHTS)
  rounded = jax.tree.map(lambda v: v.astype(np.float16).astype(np.float32), params)
  assert_same(pretrained.load(tmp_path, tiny_unet.shapes(tiny_unet.NET)), rounded)


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
  state = pretrained.to_state_dict(tiny_unet.random_params(tiny_unet.NET))
  spoil(state)
  with pytest.raises(ValueError, match=message) as error:
    pretrained.from_state_dict(state, tiny_unet.shapes(tiny_unet.NET))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.5, 0.001, 0], ids=["half", "header", "empty"])
def test_a_damaged_file(tmp_path, keep):
  pretrained.save(tmp_path, tiny_unet.NET, tiny_unet.random_params(tiny_unet.NET))
  path = tmp_path / pretrained.WEIGHTS
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole))])
  with pytest.raises(ValueError, match=r"safetensors is damaged .*; fetch or make it") as error:
    pretrained.load(tmp_path, tiny_unet.shapes(tiny_unet.NET))
  assert "\n" not in str(error.value)


def test_a_folder_without_weights(tmp_path):
  with pytest.raises(ValueError, match="does not exist; give a folder that holds diffusion"):
    pretrained.load(tmp_path, tiny_unet.shapes(tiny_unet.NET))
