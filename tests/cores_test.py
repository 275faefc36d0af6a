"""Each core of a CPU as a device, and rows of a noise predictor over the devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import siss_mnist
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.evals import nll
from jaxunlearn.mesh import cores, sharding
from tests import nets


@pytest.mark.parametrize(
  ("batch", "micro", "available", "expected"),
  [(64, 1, 2, 2), (64, 1, 1, 1), (64, 1, 96, 8), (64, 16, 8, 4), (6, 1, 8, 2), (7, 1, 8, 1)],
)
def test_as_many_devices_as_divide_a_step(batch, micro, available, expected):
  config = siss_mnist.get_config()
  config.train.update(batch=batch, micro_batches=micro)
  assert cores.number(cores.rows_of(config), {}, available) == expected
  table = ConfigDict({"runs": {"a": siss_mnist.get_config(), "b": config}})
  assert cores.number(cores.rows_of(table), {}, available) == expected


@pytest.mark.parametrize(
  "config",
  [
    {"runs": None, "train": {"batch": 64, "micro_batches": 0}},
    {"train": {"batch": 64}},
    {"train": {"batch": "64", "micro_batches": 1}},
    {"runs": "none"},
    {"runs": {"a": {"train": None}}},
  ],
)
def test_a_config_with_bad_fields_is_left_to_the_checks(config):
  assert cores.rows_of(ConfigDict(config)) == []


@pytest.mark.parametrize(
  "environment",
  [
    {"JAX_NUM_CPU_DEVICES": "1"},
    {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    {"JAX_NUM_PROCESSES": "2"},
  ],
)
def test_what_the_environment_says_is_left_alone(environment):
  assert cores.number([64], environment, 2) == 0


def test_the_cores_of_a_process_where_the_system_tells_no_affinity(monkeypatch):
  assert cores.available() == len(os.sched_getaffinity(0))
  monkeypatch.delattr(os, "sched_getaffinity")
  assert cores.available() == os.cpu_count()


def test_a_launch_takes_both_cores():
  code = (
    "from jaxunlearn.mesh import cores; import os, jax; cores.as_devices(64); "
    "print(jax.device_count() == min(8, 1 << (len(os.sched_getaffinity(0)).bit_length() - 1)))"
  )
  plain = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
  said = subprocess.run(
    [sys.executable, "-c", code], env=plain, check=True, capture_output=True, text=True
  )
  assert said.stdout == "True\n"


@pytest.mark.parametrize("rows", [8, 3])
def test_rows_over_devices_give_the_same(rows):
  mesh = sharding.make_mesh()
  net = nets.Attentive()
  params = nets.random_params(net)
  alone = jax.tree_util.Partial(net.apply, params)
  placed = sharding.put(params, sharding.replicated(mesh))
  over = sharding.spread(jax.tree_util.Partial(net.apply, placed), mesh)
  x = jax.random.normal(jax.random.key(1), (rows, *net.image_shape))
  t = jnp.full(rows, 300)
  eps = jax.jit(lambda f, x, t: f(x, t))
  np.testing.assert_allclose(eps(over, x, t), eps(alone, x, t), atol=1e-5)
  assert len(eps(over, x, t).sharding.device_set) == mesh.size
  split = eps(over, x, t).sharding.is_fully_replicated
  assert split == (rows % mesh.size != 0)
  draw = lambda f: sampling.inject(f, Diffusion(), jax.random.key(2), x[:1], 2, n=rows)
  np.testing.assert_allclose(draw(over), draw(alone), atol=1e-4)


@pytest.mark.parametrize("rows", [8, 3])
def test_pictures_are_described_on_all_devices(rows):
  """What FID and SSCD do with the weights of their networks."""
  weights = np.random.default_rng(0).normal(size=(12, 5)).astype("f4")
  images = np.random.default_rng(1).normal(size=(rows, 12)).astype("f4")
  there = sharding.everywhere({"w": weights})
  described = jax.jit(lambda params, x: x @ params["w"])(there, sharding.beside(there, images))
  assert len(described.sharding.device_set) == jax.device_count()
  assert described.sharding.is_fully_replicated == (rows % jax.device_count() != 0)
  np.testing.assert_allclose(described, images @ weights, atol=1e-5)


def test_the_likelihood_is_the_same_over_devices():
  mesh = sharding.make_mesh()
  net = nets.Attentive()
  params = nets.random_params(net)
  placed = sharding.put(params, sharding.replicated(mesh))
  x = np.asarray(jax.random.normal(jax.random.key(1), (1, *net.image_shape)))
  bits = [
    nll.nll_bits(eps_fn, Diffusion(), jax.random.key(2), x, 8, 1e-2)
    for eps_fn in (
      jax.tree_util.Partial(net.apply, params),
      sharding.spread(jax.tree_util.Partial(net.apply, placed), mesh),
    )
  ]
  assert bits[0][1] == bits[1][1]
  np.testing.assert_allclose(bits[1][0], bits[0][0], rtol=1e-3)


def test_a_large_predictor_stays_on_one_device_of_a_cpu(monkeypatch):
  eps_fn = jax.tree_util.Partial(nets.Line().apply, nets.random_params(nets.Line()))
  assert isinstance(cores.spread(eps_fn).func, sharding.Spread)
  monkeypatch.setattr(cores, "LARGEST", 8)
  assert cores.spread(eps_fn) is eps_fn


def test_rows_lie_beside_what_they_go_into():
  mesh = sharding.make_mesh(4)
  params = sharding.put({"w": np.ones(3)}, sharding.replicated(mesh))
  assert len(sharding.beside(params, jnp.ones((8, 2))).sharding.device_set) == 4
  assert len(sharding.beside(params, jnp.ones((3, 2))).sharding.device_set) == 1
  assert len(sharding.beside({"w": np.ones(3)}, jnp.ones((8, 2))).sharding.device_set) == 1
  sources = sharding.put_sources(mesh, {"w": np.ones((4, 3))})
  assert len(sharding.beside(sources, jnp.ones((8, 2))).sharding.device_set) == 1
