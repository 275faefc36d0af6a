"""Tiny runs on every shape of the eight virtual devices, to be compared with one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxunlearn import build, methods
from tests import nets, tiny_config

SHAPES = [(8, 1), (4, 2), (2, 4), (1, 8)]
TOLERANCE = 1e-5  # float32 sums in another order: 7e-7 and less were seen
NET = nets.Attentive(classes=(11,))  # ten digits and the T-shirt

# On a network without prompts: latent_models_test.py has those of a new token.
METHODS = [n for n in methods.names() if not {"token", "text"} & {*methods.make(n).needs}]

every_method = pytest.mark.parametrize("method", METHODS)
every_shape = pytest.mark.parametrize(("data", "fsdp"), SHAPES)


def config_of(method, data=1, fsdp=1, net=None):
  """The config of a run of the tiny UNet; or, under conditions, of the net that replaces it."""
  config = tiny_config.get_config(method)
  config.mesh.update(data=data, fsdp=fsdp)
  if net is not None:
    config.model.classes = net.classes
    config.streams = {
      "x": "retain",
      "a": {"take": "forget", "to": "next"},
      "alt": {"take": "retain", "c": "forget", "to": "own"},
      "all": "all",
    }
  return config


@functools.cache
def setup_of(method, data=1, fsdp=1, micro_batches=1, net=None):
  config = config_of(method, data, fsdp, net)
  config.train.micro_batches = micro_batches
  setup = build.build(config)
  return setup if net is None else dataclasses.replace(setup, net=net)


def start(setup):
  """Step 0 from parameters that are the same on every mesh."""
  return build.make_state(setup, nets.random_params(setup.net))


def assert_close(got, want, tolerance=TOLERANCE):
  """Each leaf within the tolerance of its norm. A key bias is left out: its true gradient is 0."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith("to_k/bias"):
      assert np.linalg.norm(g - w) <= tolerance * np.linalg.norm(w), name
