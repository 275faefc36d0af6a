"""Every mesh gives the gradients of one device, leaf by leaf; and what the rules split."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxunlearn import methods, step
from jaxunlearn.mesh import sharding
from tests import meshes
from tests.meshes import NET, setup_of


def gradients(setup):
  """The K gradients of the first batch as the update takes them, from a state on the mesh."""
  state = meshes.start(setup)
  split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.is_fully_replicated]
  assert bool(split) == (setup.mesh.shape["fsdp"] > 1)

  seed, batch = setup.config.seed, setup.batch(0)
  draws = step.draw(step.program(setup), seed, state.step, batch, state.extras)
  return jax.device_get(step.Gradients(step.program(setup))(state.params, draws, state.extras))


@functools.cache
def reference(method, net=None):
  return gradients(setup_of(method, net=net))


def assert_same(got, want):
  """The gradients leaf by leaf, and the losses."""
  meshes.assert_close(got[0], want[0])
  losses = lambda metrics: {k: v for k, v in metrics.items() if k.startswith("loss")}
  meshes.assert_close(losses(got[1]), losses(want[1]))


@meshes.every_method
@meshes.every_shape
def test_every_mesh_gives_the_gradients_of_one_device(method, data, fsdp):
  assert_same(gradients(setup_of(method, data, fsdp, net=NET)), reference(method, NET))


@pytest.mark.parametrize("method", ["denoising", "siss"])
@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), (1, 8)])
def test_the_unet_too(method, data, fsdp):
  assert_same(gradients(setup_of(method, data, fsdp)), reference(method))


@pytest.mark.parametrize("method", [m for m in meshes.METHODS if not methods.make(m).whole_batch])
def test_micro_batches_give_the_gradients_of_the_whole_batch(method):
  assert_same(gradients(setup_of(method, 2, 2, 4, NET)), reference(method, NET))


@pytest.mark.parametrize("method", ["siss", "erasediff"])
def test_weights_gathered_once_give_the_same_gradients(method):
  setup = setup_of(method, 2, 4, 2, NET)
  config = setup.config.copy_and_resolve_references()
  config.train.gather_once = True
  assert_same(gradients(dataclasses.replace(setup, config=config)), reference(method, NET))


def test_two_micro_batches_of_the_whole_mesh():
  assert_same(gradients(setup_of("siss", 4, 2, 2, NET)), reference("siss", NET))


def test_the_layout_that_xla_gets_wrong_is_seen():
  """Batch over (data, fsdp) and kernels over (fsdp, tensor): why the batch is (fsdp, data) here."""
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  rng = np.random.default_rng(0)
  kernels = [rng.normal(0, 1 / 6, (32, 32)).astype(np.float32) for _ in range(3)]
  x = rng.normal(size=(16, 32)).astype(np.float32)

  def loss(kernels, x):
    pixels, shift, query = kernels
    h = x.reshape(16, 4, 8) @ pixels[:8] + jax.nn.silu(x @ shift)[:, None]
    q = h @ query
    weights = jax.nn.softmax(jnp.einsum("bic,bjc->bij", q, h))
    return jnp.sum(jnp.einsum("bij,bjc->bic", weights, q) ** 2) / len(x)

  def grads(rows):
    where = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    laid = [jax.device_put(k, where) for k in kernels], jax.device_put(x, rows)
    return jax.device_get(jax.jit(jax.grad(loss))(*laid)), {}

  want = jax.device_get(jax.grad(loss)(kernels, x)), {}
  assert_same(grads(sharding.batch_sharding(mesh)), want)
  with pytest.raises(AssertionError):
    assert_same(grads(NamedSharding(mesh, PartitionSpec(("data", "fsdp")))), want)


def test_rules_split_the_largest_dimension_that_divides():
  mesh = sharding.make_mesh(2, 4)
  shapes = {
    "kernel": jax.ShapeDtypeStruct((3, 3, 64, 32), jnp.float32),
    "tall": jax.ShapeDtypeStruct((30, 64), jnp.float32),
    "odd": jax.ShapeDtypeStruct((3, 3, 31, 33), jnp.float32),
    "small": jax.ShapeDtypeStruct((8, 8), jnp.float32),
    "count": jax.ShapeDtypeStruct((), jnp.int32),
  }
  specs = {name: where.spec for name, where in sharding.state_sharding(mesh, shapes).items()}
  assert specs == {
    "kernel": PartitionSpec(None, None, "fsdp", None),
    "tall": PartitionSpec(None, "fsdp"),
    "odd": PartitionSpec(),
    "small": PartitionSpec(),
    "count": PartitionSpec(),
  }


def test_put_gives_each_device_its_rows():
  mesh = sharding.make_mesh(4, 2)
  rows = sharding.put(np.arange(16), sharding.batch_sharding(mesh))
  np.testing.assert_array_equal(rows, np.arange(16))
  assert all(shard.data.shape == (2,) for shard in rows.addressable_shards)


def test_minus_one_takes_the_rest_of_the_devices():
  assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2}
  assert dict(sharding.make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}
  assert dict(sharding.make_mesh(1, 1).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize(("data", "fsdp"), [(16, 1), (3, -1), (-1, -1), (0, 2), (-1, 16)])
def test_a_mesh_that_does_not_fit(data, fsdp):
  with pytest.raises(ValueError, match="mesh"):
    sharding.make_mesh(data, fsdp)
