"""Attention, in one place: softmax(q k^T / sqrt(d)) v, in float32, by whole rows or by blocks.

Above `WHOLE` keys the queries are taken in blocks whose scores are made again in the backward pass:
softmax needs a whole row of scores, not all rows, so that no array of all pairs of positions exists
forward or backward. Where it is differentiated on the cores of a CPU, each a device, one head of
one picture is taken at a time: its scores stay in the cache, and the gradient takes a third of the
time. What is chosen depends on lengths and devices alone, never on the model.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.mesh import cores

WHOLE = 1024  # keys up to which all scores are made at once
BLOCK = 512  # queries at a time beyond
CACHED = 2**19  # scores that a core's cache holds, 2 MiB


def attend(
  q: Float[Array, "B Q heads d"],
  k: Float[Array, "B K heads d"],
  v: Float[Array, "B K heads d"],
  *,
  causal: bool = False,
) -> Float[Array, "B Q heads d"]:
  """What each query gathers from the values; with `causal` from those up to its own place."""
  if max(q.shape[1], k.shape[1]) > WHOLE:
    return _blocks(q, k, v, causal)
  whole = functools.partial(_rows, places=np.arange(q.shape[1]) if causal else None)
  at_once = math.gcd(len(q), jax.local_device_count())  # a picture of each device
  scores = len(q) * q.shape[2] * q.shape[1] * k.shape[1]
  if not _cores_are_devices() or scores <= at_once * CACHED:
    return whole(q, k, v)
  heads = functools.partial(_heads, whole, at_once=at_once)
  differentiated_by_heads = jax.custom_jvp(whole)
  differentiated_by_heads.defjvp(functools.partial(jax.jvp, heads))
  return jax.lax.platform_dependent(q, k, v, cpu=differentiated_by_heads, default=whole)


def _cores_are_devices() -> bool:
  """Whether a device of a CPU is one core: in a loop over small arrays others would be idle."""
  return jax.local_device_count() >= cores.available()


def _rows(q: Array, k: Array, v: Array, places: Array | np.ndarray | None) -> Array:
  """All keys for some queries; `places` are the queries' own, where later keys are hidden.

  Heads come first, the queries are scaled, not their scores, and the sums are divided last: with
  narrow heads half the time on CPU.
  """
  q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
  q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
  scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
  if places is not None:
    scores = jnp.where(places[:, None] >= jnp.arange(k.shape[2]), scores, -jnp.inf)
  shares = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  y = jnp.einsum("bhqk,bhkd->bhqd", shares.astype(v.dtype), v, preferred_element_type=jnp.float32)
  y /= jnp.sum(shares, axis=-1, keepdims=True)
  return jnp.moveaxis(y, 1, 2).astype(v.dtype)


def _heads(whole: Callable[..., Array], q: Array, k: Array, v: Array, *, at_once: int) -> Array:
  """`whole` on one head of `at_once` pictures at a time; scores are made again backward.

  Pictures are split as they lie on devices, and the loop is over none of them.
  """

  def split(x: Array) -> Array:  # [pictures, heads, devices, L, 1, d]
    parts = x.reshape(at_once, -1, *x.shape[1:])
    return jnp.moveaxis(parts, (1, 3), (0, 1))[..., None, :]

  one = jax.checkpoint(lambda each: whole(*each), prevent_cse=False)
  over_heads = functools.partial(jax.lax.map, one)
  out = jax.lax.map(over_heads, (split(q), split(k), split(v)))
  return jnp.moveaxis(out[..., 0, :], (0, 1), (1, 3)).reshape(*q.shape[:3], v.shape[3])


def _blocks(q: Array, k: Array, v: Array, causal: bool) -> Array:
  """The queries a block at a time; the last is filled up with zeros, which are cut off again."""
  length = q.shape[1]
  count = math.ceil(length / BLOCK)
  padded = jnp.pad(q, ((0, 0), (0, count * BLOCK - length), (0, 0), (0, 0)))
  blocks = jnp.moveaxis(padded.reshape(len(q), count, BLOCK, *q.shape[2:]), 1, 0)
  places = jnp.arange(count * BLOCK).reshape(count, BLOCK)

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def one(block: Array, where: Array) -> Array:
    return _rows(block, k, v, where if causal else None)

  out = jax.lax.map(lambda both: one(*both), (blocks, places))
  return jnp.moveaxis(out, 0, 1).reshape(padded.shape)[:, :length]
