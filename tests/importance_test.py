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


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.max(np.abs(want)))


@pytest.mark.parametrize(("count", "chunk"), [(3, 100), (20, 30)])
def test_fisher_sums_the_gradients_of_all_times_of_a_record_and_then_squares(count, chunk):
  rows = some_rows(4)
  kind = {"rows": count, "chunk": chunk, "c_dropout": 0.3}
  got = importance.fisher(toys.linear, PARAMS, PROCESS, rows, KEY, **kind)
  squares, picked = [], rows.pick(count, 0)
  for i, row in enumerate(picked.chunks(1)):
    grad = 0.0
    for k, first in enumerate(range(0, PROCESS.T, chunk)):
      t = np.arange(first, min(first + chunk, PROCESS.T))
      k_eps, k_c = jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, i), k))
      eps = np.float64(jax.random.normal(k_eps, (len(t), *SHAPE)))
      c = np.asarray(methods.drop_conditions(np.repeat(row.c, len(t)), 0.3, k_c))
      x_t = toys.noised(PROCESS, np.repeat(row.image, len(t), axis=0), t, eps)
      grad = grad + len(t) * toys.linear_loss(toys.flat(PARAMS), x_t, c, eps)[1]
    squares.append(grad**2)
  assert len(squares) == min(count, 4)
  close(toys.flat(got), np.mean(squares, axis=0))


def test_fisher_of_a_constant_network_is_its_closed_form():
  """eps_theta = e_c: the gradient is sum_t 2 (e - eps_t), whose square is 4 (T^2 e^2 + T)."""
  params = PARAMS | {"w": 0 * PARAMS["w"]}
  kind = {"rows": 120, "chunk": 50, "c_dropout": 0.0}
  got = importance.fisher(toys.linear, params, PROCESS, some_rows(120), KEY, **kind)
  got, e = (np.float64(tree["class_embedding_0"]["embedding"]) for tree in (got, params))
  want, rows = 4 * (PROCESS.T**2 * e**2 + PROCESS.T), np.bincount(some_rows(120).c, minlength=5)
  want *= rows[:, None] / rows.sum()
  np.testing.assert_array_equal(got[3:], 0)
  # Of 54 entries; the deviation of an entry's mean is about 4 sqrt(4 T^3 e^2 / rows).
  np.testing.assert_allclose(got[:3].sum(), want[:3].sum(), rtol=0.05)


def guided_gradient(rows, i, w):
  """The gradient of ||eps - (1 + w) eps_c + w eps_null||^2 in float64, by the chain rule."""
  noise = methods.draw_noise(PROCESS, rows.image.shape, jax.random.fold_in(KEY, i))
  x_t, eps = toys.noised(PROCESS, rows.image, **noise), np.float64(noise["eps"])
  theta, null = toys.flat(PARAMS), np.full(len(rows.c), -1)
  eps_c, eps_null = (toys.linear_eps(theta, x_t, c) for c in (rows.c, null))
  slope = -2 * (eps - (1 + w) * eps_c + w * eps_null) / len(x_t)
  table = np.zeros((5, *SHAPE))
  np.add.at(table, rows.c, (1 + w) * slope)
  np.add.at(table, null, -w * slope)
  return np.concatenate([table.ravel(), np.sum(slope * x_t, axis=0).ravel()])


@pytest.mark.parametrize(("clip", "w"), [(0.3, 0.0), (8.0, 2.0), (None, 2.0)])
def test_each_batch_of_the_guided_loss_is_clipped(clip, w):
  rows = some_rows(9)
  kind = {"batch": 4, "rows": 9, "w": w, "clip": clip}
  take = lambda: importance.batch_gradients(toys.linear, PARAMS, PROCESS, rows, KEY, **kind)
  parts = list(rows.pick(9, 0).chunks(4))
  assert [len(part.image) for part in parts] == [4, 4, 1]
  grads = [guided_gradient(part, i, w) for i, part in enumerate(parts)]
  want = [g * min(1, (clip or np.inf) / np.linalg.norm(g)) for g in grads]
  close(toys.flat(importance.summed(take())), sum(want))
  close(toys.flat(importance.mean_square(take())), np.mean(np.square(want), axis=0))


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
