"""A UNet of two levels with attention, and random parameters for any UNet, in no time."""

import functools
import json

import jax
import numpy as np

from jaxunlearn.diffusion import Diffusion
from jaxunlearn.models import unet

NET = unet.Net(
  sample_size=8,
  in_channels=2,
  out_channels=2,
  block_out_channels=(8, 16),
  down_block_types=("DownBlock2D", "AttnDownBlock2D"),
  up_block_types=("AttnUpBlock2D", "UpBlock2D"),
  layers_per_block=1,
  attention_head_dim=4,
  norm_num_groups=4,
)
PROCESS = Diffusion("scaled_linear", 900, 0.00085, 0.012)


@functools.cache
def shapes(net):
  return jax.eval_shape(net.init, jax.random.key(0))


def random_params(net, seed=0):
  """NumPy float32: vectors around their initial 0 or 1, kernels of variance 1 / fan-in."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
    mean = 1.0 if path[-1].key == "scale" else 0.0
    return rng.normal(mean, fan_in**-0.5, leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, shapes(net))


def write(folder, name, **fields):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(json.dumps(fields))


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b)
