"""Attention by rows, by heads and by blocks is one function; by heads only on a CPU's cores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.mesh import sharding
from jaxunlearn.models import attention

causal_or_not = pytest.mark.parametrize("causal", [False, True])


def inputs(batch=4, queries=37, keys=37, heads=3, width=4):
  shapes = [(batch, n, heads, width) for n in (queries, keys, keys, queries)]
  return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def by_heads(monkeypatch, devices=2):
  monkeypatch.setattr(attention, "_cores_are_devices", lambda: True)
  monkeypatch.setattr(attention, "CACHED", 1)
  monkeypatch.setattr(jax, "local_device_count", lambda: devices)


def by_blocks(monkeypatch):
  monkeypatch.setattr(attention, "WHOLE", 16)
  monkeypatch.setattr(attention, "BLOCK", 8)


def gradients(q, k, v, w, causal=False):
  """Of a new function each time: what is chosen is no part of JAX's caches."""
  f = lambda q, k, v: jnp.sum(w * attention.attend(q, k, v, causal=causal))
  return jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v)


def agree(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@causal_or_not
@pytest.mark.parametrize("way", [by_blocks, by_heads])
def test_every_way_is_the_softmax_by_its_formula(way, causal, monkeypatch):
  way(monkeypatch)
  q, k, v, _ = inputs()
  scores = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(x, np.float64) for x in (q, k))) / 2
  if causal:
    scores[..., ~np.tri(37, dtype=bool)] = -np.inf
  shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  want = np.einsum("bhqk,bkhd->bqhd", shares, v)
  np.testing.assert_allclose(attention.attend(q, k, v, causal=causal), want, atol=1e-5)


@causal_or_not
@pytest.mark.parametrize("way", [by_blocks, by_heads])
def test_every_way_has_the_gradients_of_whole_rows(way, causal, monkeypatch):
  args = inputs()
  whole = gradients(*args, causal=causal)
  way(monkeypatch)
  agree(gradients(*args, causal=causal), whole)


def test_by_heads_with_fewer_keys_forward_mode_and_under_vmap(monkeypatch):
  q, k, v, w = (jnp.stack([x, 2 * x]) for x in inputs(keys=5))
  tangents = (w, k + 1, v * v)

  def all_modes():
    attend = lambda q, k, v: attention.attend(q, k, v)
    pushed = jax.vmap(lambda *each: jax.jvp(attend, each[:3], each[3:]))(q, k, v, *tangents)
    return pushed, jax.vmap(gradients)(q, k, v, w)

  whole = all_modes()
  by_heads(monkeypatch)
  agree(all_modes(), whole)


def test_by_heads_on_a_cpu_alone_where_differentiated_and_in_less_memory(monkeypatch):
  args = inputs(batch=4, queries=128, keys=128, heads=8)
  by_heads(monkeypatch)
  step = jax.jit(lambda *args: gradients(*args)[1])
  lower = lambda platform: step.trace(*args).lower(lowering_platforms=(platform,))
  loops = [
    lower(platform).as_text().count("stablehlo.while") for platform in ("cpu", "cuda", "tpu")
  ]
  assert loops[0] > 0 and loops[1:] == [0, 0]
  forward = jax.jit(lambda *args: attention.attend(*args)).trace(*args[:3])
  assert forward.lower(lowering_platforms=("cpu",)).as_text().count("stablehlo.while") == 0
  temporaries = lambda step: step.lower(*args).compile().memory_analysis().temp_size_in_bytes
  less = temporaries(step)
  monkeypatch.undo()
  assert less < temporaries(jax.jit(lambda *args: gradients(*args)[1])) / 4


def test_by_heads_each_device_takes_its_own_pictures(monkeypatch):
  mesh = sharding.make_mesh(2)
  args = inputs(batch=4)
  whole = gradients(*args)
  by_heads(monkeypatch)
  shared = sharding.put(dict(enumerate(args)), sharding.batch_sharding(mesh))
  step = jax.jit(gradients)
  agree(step(*shared.values()), whole)
  text = step.lower(*shared.values()).compile().as_text()
  assert "all-gather" not in text and "all-to-all" not in text


def test_no_array_of_all_pairs_of_4096_pixels():
  rows = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)
  gradient = jax.grad(lambda q, k, v: jnp.sum(attention.attend(q, k, v) ** 2), argnums=(0, 1, 2))
  compiled = jax.jit(gradient).lower(rows, rows, rows).compile()
  assert "4096,4096" not in compiled.as_text()
  largest = 8 * attention.BLOCK * 4096 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < 8 * largest
