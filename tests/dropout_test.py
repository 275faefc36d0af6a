"""Dropout: where it is, how much it drops, and that cutting a step into parts moves no mask."""

import dataclasses
import functools
import pathlib

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn import build, models, step
from jaxunlearn.models import unet
from jaxunlearn.weights import diffusers_config, pretrained
from tests import nets, tiny_config, tiny_unet

RATE = 0.3
NET = dataclasses.replace(tiny_unet.NET, dropout=RATE)
ROWS = np.array([7, 2**32 - 1, 7, 0], np.uint32)  # the first and the third are equal


@functools.cache
def inputs():
  """The same image and time in every row, so that rows differ by their masks alone."""
  x = np.random.default_rng(0).normal(size=(1, *NET.image_shape)).astype(np.float32)
  return tiny_unet.random_params(NET), np.repeat(x, len(ROWS), 0), np.full(len(ROWS), 500, np.int32)


@functools.partial(jax.jit, static_argnums=0)
def predict(net, params, x, t, rows=None):
  return net.apply(params, x, t, None, rows)


@functools.cache
def dropped():
  """name of a residual block -> what its last convolution reads, [B, H, W, C], with the masks."""
  only = lambda module, _: isinstance(module, nn.Dropout)
  read = functools.partial(unet.UNet(NET).apply, capture_intermediates=only)

  def alone(params, x, t, row):
    ins = (x[None], t[None], jnp.zeros((1, 0), int))
    return read({"params": params}, *ins, rngs={"dropout": jax.random.key(row)})

  every = jax.jit(jax.vmap(alone, in_axes=(None, 0, 0, 0)))
  _, state = every(*inputs(), jnp.asarray(ROWS))
  leaves = jax.tree.leaves_with_path(state["intermediates"])
  return {".".join(k.key for k in path[:-3]): np.asarray(v[:, 0]) for path, v in leaves}


def test_a_row_s_masks_are_its_seed_s_wherever_it_stands():
  params, x, t = inputs()
  y = np.asarray(predict(NET, params, x, t, ROWS))
  np.testing.assert_allclose(y[0], y[2], rtol=1e-5, atol=1e-6)
  assert min(np.abs(y[0] - y[1]).max(), np.abs(y[0] - y[3]).max()) > 0.1
  turned = np.asarray(predict(NET, params, x, t, ROWS[::-1].copy()))
  np.testing.assert_allclose(turned[::-1], y, rtol=1e-5, atol=1e-6)


def test_the_share_is_right_and_each_block_has_masks_of_its_own():
  kept = {name: value != 0 for name, value in dropped().items()}
  assert len(kept) == 8  # two levels of 1 down and 2 up, two in the middle
  every = np.concatenate([mask[[0, 1, 3]].ravel() for mask in kept.values()])
  assert abs(every.mean() - (1 - RATE)) < 4 * (RATE * (1 - RATE) / every.size) ** 0.5
  one, other = kept["up_blocks_1.resnets_0"], kept["up_blocks_1.resnets_1"]
  assert abs((one == other)[[0, 1, 3]].mean() - (RATE**2 + (1 - RATE) ** 2)) < 0.05


def test_it_is_diffusers_network_under_the_same_masks():
  """Its own dropout layers made to drop what ours drop, scaled by 1 / (1 - rate)."""
  params, x, t = inputs()
  fields = {k: v for k, v in diffusers_config.of_net(NET).items() if not k.startswith("_")}
  model = diffusers.UNet2DModel(**fields).eval()
  state = pretrained.to_state_dict(params)
  model.load_state_dict({name: torch.tensor(np.asarray(v)) for name, v in state.items()})
  for name, value in dropped().items():
    path = name.replace("_blocks_", "_blocks.").replace("resnets_", "resnets.")
    mask = torch.tensor(np.moveaxis(value != 0, -1, 1).astype(np.float32) / (1 - RATE))
    hook = lambda module, args, out, mask=mask: out * mask
    model.get_submodule(f"{path}.dropout").register_forward_hook(hook)
  with torch.no_grad():
    theirs = model(torch.tensor(np.moveaxis(x, -1, 1).copy()), torch.tensor(t)).sample
  ours = predict(NET, params, x, t, ROWS)
  np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), rtol=1e-4, atol=1e-5)


def test_nothing_is_dropped_without_seeds_or_at_rate_0():
  params, x, t = inputs()
  want = predict(tiny_unet.NET, params, x, t)
  np.testing.assert_array_equal(predict(NET, params, x, t), want)
  np.testing.assert_array_equal(predict(tiny_unet.NET, params, x, t, ROWS), want)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_senseless_rate(rate):
  with pytest.raises(ValueError, match=f"dropout is {rate:g}; use 0 to under 1"):
    dataclasses.replace(NET, dropout=rate)


def test_diffusers_config_has_it():
  config = diffusers_config.of_net(NET)
  assert config["dropout"] == RATE
  assert models.make(**diffusers_config.model_fields(config, pathlib.Path("config.json"))) == NET


@functools.cache
def setup_of(**overrides):
  config = tiny_config.get_config()
  config.model.dropout = RATE
  config.mesh.update(data=1, fsdp=1)
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
  return build.build(config)


@functools.cache
def draws_of(at=0, **overrides):
  setup = setup_of(**overrides)
  return jax.device_get(step.draw(step.program(setup), 0, jnp.int32(at), setup.batch(0), {}))


@functools.cache
def gradients(masks=True, **overrides):
  """By the name of the leaf, with the draws of one device and step 0."""
  setup, draws = setup_of(**overrides), draws_of()
  draws = draws if masks else {k: v for k, v in draws.items() if k != step.DROPOUT}
  (tree,), _ = step.Gradients(step.program(setup))(nets.random_params(setup.net), draws, {})
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def test_a_step_draws_a_seed_a_row_of_its_own():
  seeds = [draws_of(at)[step.DROPOUT] for at in (0, 1)]
  assert seeds[0].dtype == np.uint32 and seeds[0].shape == (16,)
  assert len(np.unique(np.concatenate(seeds))) == 32
  plain = draws_of(model__dropout=0.0)
  assert draws_of().keys() - plain.keys() == {step.DROPOUT}
  for name, value in plain.items():
    np.testing.assert_array_equal(value, draws_of()[name])


@pytest.mark.parametrize("cut", [{"train__micro_batches": 4}, {"mesh__data": 4, "mesh__fsdp": 2}])
def test_micro_batches_and_meshes_give_the_gradient_of_the_whole(cut):
  got, want, without = gradients(**cut), gradients(), gradients(masks=False)
  for name, w in want.items():
    if not name.endswith("to_k/bias"):  # whose true gradient is zero
      norm = np.linalg.norm(w)
      assert np.linalg.norm(got[name] - w) <= 1e-5 * norm, name
      assert np.linalg.norm(without[name] - w) > 0.01 * norm, name
