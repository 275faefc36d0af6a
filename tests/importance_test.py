"""Fisher information, summed gradients and masks, against float64 on a linear network."""

import jax
import numpy as np
import pytest

from jaxunlearn import methods
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.methods import importance
from tests import toys

PROCESS = Diffusion(T=100, beta_T=0.2)
SHAPE = (3, 3, 2)
PARAMS = toys.linear_params(SHAPE, 4)
KEY = jax.random.key(8)


def some_rows(n):
  rng = np.random.default_rng(n)
  image = rng.uniform(-1, 1, (n, *SHAPE)).astype(np.float32)
  return methods.Rows(image, rng.integers(0, 3, n).astype(np.int32), np.arange(n, dtype=np.int32))


def gradient(rows, i):
  """The denoising gradient of the i-th batch in float64, from the noise that it draws."""
  noise = methods.draw_noise(PROCESS, rows.image.shape, jax.random.fold_in(KEY, i))
  x_t = toys.noised(PROCESS, rows.image, **noise)
  return toys.linear_loss(toys.flat(PARAMS), x_t, rows.c, np.float64(noise["eps"]))[1]


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.max(np.abs(want)))


@pytest.mark.parametrize("count", [5, 100])
def test_fisher_is_the_mean_of_each_records_squared_gradient(count):
  rows = some_rows(9)
  got = importance.fisher(toys.linear, PARAMS, PROCESS, rows, KEY, count)
  picked = rows.pick(count, 0)
  squares = [gradient(row, i) ** 2 for i, row in enumerate(picked.chunks(1))]
  assert len(squares) == min(count, 9)
  close(toys.flat(got), np.mean(squares, axis=0))
  unseen = np.setdiff1d(np.arange(5), picked.c)
  assert {3, 4} <= set(unseen)
  assert not np.any(got["class_embedding_0"]["embedding"][unseen])


@pytest.mark.parametrize("clip", [0.3, 8.0, 1e6])
def test_each_batch_is_clipped_before_the_sum(clip):
  rows = some_rows(9)
  kind = {"batch": 4, "rows": 9, "clip": clip}
  got = importance.summed_gradient(toys.linear, PARAMS, PROCESS, rows, KEY, **kind)
  parts = [gradient(part, i) for i, part in enumerate(rows.pick(9, 0).chunks(4))]
  assert [len(part.image) for part in rows.pick(9, 0).chunks(4)] == [4, 4, 1]
  scales = [min(1, clip / np.linalg.norm(part)) for part in parts]
  close(toys.flat(got), sum(s * part for s, part in zip(scales, parts, strict=True)))
  assert any(s < 1 for s in scales) == (clip < 1e6)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
def test_the_largest_are_exactly_the_share_of_all_leaves_together(share):
  tree = {
    "big": 5 + np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32),
    "small": np.random.default_rng(1).standard_normal(50).astype(np.float32),
    "zero": np.zeros((20, 1), np.float32),
  }
  mask = importance.largest(jax.tree.map(np.negative, tree), share)
  assert jax.tree.map(np.shape, mask) == jax.tree.map(np.shape, tree)
  assert all(leaf.dtype == bool for leaf in jax.tree.leaves(mask))
  chosen, values = toys.flat(mask) > 0, np.abs(toys.flat(tree))
  assert chosen.sum() == round(100 * share)
  assert np.all(values[chosen].min() >= values[~chosen].max(initial=0))


def test_ties_do_not_add_to_the_share():
  mask = importance.largest({"a": np.ones(7), "b": np.zeros((3, 4))}, 0.5)
  assert mask["a"].all() and mask["b"].sum() == round(0.5 * 19) - 7
