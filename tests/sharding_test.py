"""Every mesh gives the gradients of one device, leaf by leaf; and what the rules split."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxunlearn import methods, sharding, step, train
from tests import nets, tiny_config

MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]
TOLERANCE = 1e-5
NET = nets.Attentive(classes=(11,))  # ten digits and the T-shirt

every_method = pytest.mark.parametrize("method", methods.names())
every_mesh = pytest.mark.parametrize(("data", "fsdp"), MESHES)


@functools.cache
def setup_of(method, data=1, fsdp=1, micro_batches=1, net=None):
  config = tiny_config.get_config(method)
  config.mesh.update(data=data, fsdp=fsdp)
  config.train.micro_batches = micro_batches
  if net is not None:
    config.model.classes = net.classes
    config.streams = {
      "x": "retain",
      "a": {"take": "forget", "to": "next"},
      "alt": {"take": "retain", "c": "forget"},
    }
  setup = train.build(config)
  return setup if net is None else dataclasses.replace(setup, net=net)


def gradients(setup):
  """The K gradients of the first batch as the update takes them, from parameters on the mesh."""
  lay = lambda tree: sharding.put(tree, sharding.state_sharding(setup.mesh, tree))
  params = nets.random_params(setup.net)
  key = jax.random.key(3)
  extras = lay(setup.method.prepare(setup.net.apply, params, setup.process, setup.streams, key))
  params = lay(params)
  split = [leaf for leaf in jax.tree.leaves(params) if not leaf.is_fully_replicated]
  assert bool(split) == (setup.mesh.shape["fsdp"] > 1)

  draw = jax.jit(lambda b: setup.method.draw(setup.process, b, jax.random.key(7), extras, 0))
  return jax.device_get(step.Gradients(setup)(params, draw(setup.batch(0)), extras))


@functools.cache
def reference(method, net=None):
  return gradients(setup_of(method, net=net))


def assert_same(got, want):
  """Each leaf within TOLERANCE of its norm. A key bias is left out: its true gradient is 0."""
  (got, got_metrics), (want, want_metrics) = got, want
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith("to_k/bias"):
      assert np.linalg.norm(g - w) <= TOLERANCE * np.linalg.norm(w), name
  for name in (name for name in want_metrics if name.startswith("loss")):
    np.testing.assert_allclose(got_metrics[name], want_metrics[name], rtol=TOLERANCE)


@every_method
@every_mesh
def test_every_mesh_gives_the_gradients_of_one_device(method, data, fsdp):
  assert_same(gradients(setup_of(method, data, fsdp, net=NET)), reference(method, NET))


@pytest.mark.parametrize("method", ["denoising", "siss"])
@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), (1, 8)])
def test_the_unet_too(method, data, fsdp):
  assert_same(gradients(setup_of(method, data, fsdp)), reference(method))


@pytest.mark.parametrize("method", [m for m in methods.names() if not methods.make(m).whole_batch])
def test_micro_batches_give_the_gradients_of_the_whole_batch(method):
  assert_same(gradients(setup_of(method, 2, 2, 4, NET)), reference(method, NET))


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
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    kernel = PartitionSpec("fsdp", "tensor")
    laid = [put(k, kernel) for k in kernels], put(x, PartitionSpec(rows))
    return jax.device_get(jax.jit(jax.grad(loss))(*laid)), {}

  want = jax.device_get(jax.grad(loss)(kernels, x)), {}
  assert_same(grads(sharding.BATCH_AXES), want)
  with pytest.raises(AssertionError):
    assert_same(grads(("data", "fsdp")), want)


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
