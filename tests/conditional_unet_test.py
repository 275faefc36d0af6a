"""The class-conditional UNet: its published size, and an independent PyTorch module.

The latter is diffusers' UNet2DModel with two changes: what its time embedding gives is followed by
an MLP's output for each condition, and the projections of its residual blocks read all of it.
"""

import dataclasses
import functools
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from jaxunlearn.diffusion import NULL
from jaxunlearn.methods import embeddings
from jaxunlearn.models import unet
from jaxunlearn.weights import pretrained
from tests import tiny_unet, unet_parity
from tests.unet_parity import CIFAR10, distance

TINY = {
  **{k: v for k, v in dataclasses.asdict(tiny_unet.NET).items() if k not in ("classes", "dtype")},
  "in_channels": 3,
  "out_channels": 3,
  "attention_head_dim": None,
}
ROWS = {  # the conditions of three rows, nulls among them
  (10,): [9, NULL, 0],
  (3, 2): [[2, 0], [0, NULL], [NULL, 1]],
}


class OfClass(torch.nn.Embedding):
  """Rows of a table whose last is null, then Linear, SiLU, Linear."""

  def __init__(self, values, width):
    super().__init__(values + 1, width)
    self.linear_1 = torch.nn.Linear(width, 4 * width)
    self.linear_2 = torch.nn.Linear(4 * width, 4 * width)

  def forward(self, c):
    row = torch.tensor([self.num_embeddings - 1 if v == NULL else v for v in c])
    return self.linear_2(torch.nn.functional.silu(self.linear_1(super().forward(row))))


class TimeAndClasses(torch.nn.Module):
  """The time embedding, then those of the conditions: rows `c` [B, n], set before the call."""

  def __init__(self, time, classes, width):
    super().__init__()
    self.time, self.c = time, np.empty((0, len(classes)), int)
    self.classes = torch.nn.ModuleList(OfClass(values, width) for values in classes)

  def forward(self, waves, cond=None):
    parts = (module(column) for module, column in zip(self.classes, self.c.T, strict=True))
    return torch.cat([self.time(waves), *parts], dim=1)


def torch_model(config):
  """diffusers' UNet made conditional."""
  classes, width = config["classes"], config["block_out_channels"][0]
  fields = config.keys() - {"patch_size", "classes"}
  model = diffusers.UNet2DModel(**{k: config[k] for k in fields})
  model.time_embedding = TimeAndClasses(model.time_embedding, classes, width)
  for block in model.modules():
    if isinstance(block, ResnetBlock2D):
      features = block.time_emb_proj.out_features
      block.time_emb_proj = torch.nn.Linear(4 * width * (1 + len(classes)), features)
  return model


def to_state_dict(params):
  """Our parameters under the names of the PyTorch module."""
  name = lambda name: re.sub(
    r"^class_embedding", "time_embedding.classes", re.sub(r"^time_embedding", r"\g<0>.time", name)
  )
  return {name(k): v for k, v in pretrained.to_state_dict(params).items()}


@functools.cache
def tiny(classes):
  """The jitted tiny UNet, its parameters and three rows of input."""
  net = unet.Net(**TINY, classes=classes)
  x = np.random.default_rng(1).normal(size=(3, *net.image_shape)).astype(np.float32)
  return jax.jit(net.apply), tiny_unet.random_params(net), x, np.array([0, 500, 999], np.int32)


def of(c):
  return np.array(c, np.int32)


def test_the_cifar10_network_has_the_published_size():
  """38.6 million parameters, as the class-unlearning papers' DDPM; leaf by leaf as in PyTorch."""
  config = CIFAR10 | {"classes": (10,)}
  shapes = tiny_unet.shapes(unet.Net(**config))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 38_632_323
  with torch.device("meta"):
    want = {name: tuple(leaf.shape) for name, leaf in torch_model(config).named_parameters()}
  nothing = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
  assert {name: leaf.shape for name, leaf in to_state_dict(nothing).items()} == want


@pytest.mark.parametrize("classes", ROWS)
def test_equals_an_independent_pytorch_module(classes):
  config, c = TINY | {"classes": classes}, of(ROWS[classes])
  net, model = unet.Net(**config), torch_model(config)
  params = tiny_unet.random_params(net)
  state = {name: torch.tensor(leaf) for name, leaf in to_state_dict(params).items()}
  model.load_state_dict(state, strict=True)
  model.time_embedding.c = c.reshape(len(c), -1)
  apply = lambda params, x, t: net.apply(params, x, t, jnp.asarray(c))
  unet_parity.check(apply, params, to_state_dict, model, net.image_shape, t=[3, 421, 999])


@pytest.mark.parametrize("classes", ROWS)
def test_null_is_the_last_row_of_each_table_and_what_no_condition_means(classes):
  apply, params, x, t = tiny(classes)
  c = of(ROWS[classes])
  null = apply(params, x, t, np.full_like(c, NULL))
  np.testing.assert_array_equal(apply(params, x, t, None), null)
  last = np.broadcast_to(of(classes), (3, len(classes))).reshape(c.shape)
  np.testing.assert_array_equal(apply(params, x, t, last), null)
  assert distance(apply(params, x, t, np.zeros_like(c)), null) > 1e-3


def test_each_condition_reads_its_own_table():
  apply, params, x, t = tiny((3, 2))
  at = lambda params, *c: np.asarray(apply(params, x, t, np.tile(of(c), (3, 1))))
  for column, (mine, other) in enumerate([((1, 0), (0, 1)), ((0, 1), (1, 0))]):
    table = embeddings.table(params, column)
    moved = embeddings.with_table(params, column, table.at[1].set(table[0]))
    np.testing.assert_array_equal(at(moved, *mine), at(params, 0, 0))
    assert distance(at(params, *mine), at(params, 0, 0)) > 1e-3
    np.testing.assert_array_equal(at(moved, *other), at(params, *other))


def test_a_row_depends_on_its_own_condition_alone():
  apply, params, x, t = tiny((10,))
  y, changed = (np.asarray(apply(params, x, t, of(c))) for c in ([1, 2, 3], [1, 7, 3]))
  np.testing.assert_array_equal(changed[[0, 2]], y[[0, 2]])
  assert distance(changed[1], y[1]) > 1e-3


@pytest.mark.parametrize(
  ("classes", "shape"),
  [((10,), (2,)), ((10,), (3, 1)), ((3, 2), (3,)), ((3, 2), (3, 3)), ((3, 2), (2, 2))],
)
def test_conditions_of_another_shape_are_refused(classes, shape):
  apply, params, x, t = tiny(classes)
  says = rf"conditions are {re.escape(str(shape))}; give {len(classes)} for each of 3 images"
  with pytest.raises(ValueError, match=says):
    apply(params, x, t, np.zeros(shape, np.int32))


def test_a_condition_of_no_values_is_refused():
  with pytest.raises(ValueError, match=r"classes is \(10, 0\); use whole numbers, 1 or more"):
    unet.Net(**TINY, classes=[10, 0])
