"""Denoising, NegGrad, SISS (No IS), EraseDiff and ReTrack on a linear network, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import methods
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.methods import erasediff, retrack, siss_no_is

PROCESS = Diffusion()
GAMMA, SIGMA = np.sqrt(PROCESS.abar), np.sqrt(1 - PROCESS.abar)  # float64
SHAPE = (4, 4, 3)
W = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def linear(params, x_t, t, c=None):
  """eps_theta = w x_t, pixel by pixel."""
  del t, c
  return params["w"] * x_t


def rows(seed, n, first=0):
  image = np.random.default_rng(seed).uniform(-1, 1, (n, *SHAPE)).astype(np.float32)
  return methods.Rows(image, None, first + np.arange(n, dtype=np.int32))


DATA = {"x": rows(1, 30), "a": rows(2, 6, first=30)}
BATCH = {
  k: jax.tree.map(lambda v: jnp.asarray(v[np.arange(12) % len(v)]), rows)
  for k, rows in DATA.items()
}


@functools.partial(jax.jit, static_argnums=0)
def one_step(method, extras):
  """(draws, K gradients, direction, metrics)."""
  batch = {k: BATCH[k] for k in method.streams}
  draws = method.draw(PROCESS, batch, jax.random.key(0), extras, 0)
  grads, metrics = methods.term_grads(method, linear, {"w": W}, PROCESS, draws, extras)
  direction, combined = method.combine(grads, extras)
  return draws, grads, direction, metrics | combined


def step(name, extras=None, **fields):
  """A step as NumPy in float64, and its metrics."""
  draws, grads, direction, metrics = one_step(methods.make(name, **fields), extras or {})
  wide = lambda v: np.asarray(v) if v.dtype.kind == "i" else np.float64(v)
  return (
    jax.tree.map(wide, draws),
    [np.float64(g["w"]) for g in grads],
    np.float64(direction["w"]),
    metrics,
  )


def noised(y, draws):
  t = draws["t"][:, None, None, None]
  return GAMMA[t] * y + SIGMA[t] * draws["eps"]


def loss_and_grad(x_t, target):
  """mean_b sum (target - w x_t)^2, and its gradient mean_b -2 (target - w x_t) x_t."""
  residual = target - np.float64(W) * x_t
  return np.mean(np.sum(residual**2, axis=(1, 2, 3))), np.mean(-2 * residual * x_t, axis=0)


def close(got, want, rtol=1e-5):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.max(np.abs(want)))


def test_denoising_descends_on_x():
  draws, grads, direction, metrics = step("denoising")
  loss, grad = loss_and_grad(noised(draws["x"], draws), draws["eps"])
  close(metrics["loss_x"], loss)
  close(grads[0], grad)
  close(direction, grad)


def test_neggrad_ascends_on_a():
  draws, grads, direction, metrics = step("neggrad")
  loss, grad = loss_and_grad(noised(draws["a"], draws), draws["eps"])
  close(metrics["loss_a"], loss)
  close(grads[0], grad)
  close(direction, -grad)


@pytest.mark.parametrize("norm", [None, 5.0])
def test_no_is_subtracts_the_scaled_gradient_of_a(norm):
  draws, grads, direction, metrics = step("siss_no_is", forget_norm=norm, forget_ratio=0.2)
  loss_x, g_x = loss_and_grad(noised(draws["x"], draws), draws["eps"])
  loss_a, g_a = loss_and_grad(noised(draws["a"], draws), draws["eps"])
  close([metrics["loss_x"], metrics["loss_a"]], [loss_x, loss_a])
  close(grads, [g_x, g_a])
  size = 0.2 * np.linalg.norm(g_x) if norm is None else norm
  close(direction, g_x - size * g_a / np.linalg.norm(g_a))


def test_no_is_and_siss_take_the_same_forget_norm():
  g_x, g_a = ({"w": jnp.asarray(v)} for v in ([3.0, 4.0], [0.0, 7.0]))
  for fields in ({}, {"forget_norm": 2.0}, {"forget_ratio": 0.7}):
    ours = methods.make("siss_no_is", **fields).combine((g_x, g_a), {})
    theirs = methods.make("siss", **fields).combine((g_x, g_a), {})
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_no_is_refuses_a_size_out_of_range():
  with pytest.raises(ValueError, match=r"^forget_norm is -5; use more than 0, or None"):
    siss_no_is.Method(forget_norm=-5.0)


@pytest.mark.parametrize("eta", [1e-3, 100.0])
def test_erasediff_is_its_single_level_rule(eta):
  draws, grads, direction, metrics = step("erasediff", eta=eta)
  assert np.all((draws["u"] >= 0) & (draws["u"] < 1)) and abs(draws["u"].mean() - 0.5) < 0.05
  _, g_x = loss_and_grad(noised(draws["x"], draws), draws["eps"])
  loss_a, g_a = loss_and_grad(noised(draws["a"], draws), draws["u"])
  close(metrics["loss_a"], loss_a)
  close(grads, [g_x, g_a])
  c = max(eta - np.vdot(g_x, g_a) / np.vdot(g_a, g_a), 0)
  assert (c > 0) == (eta == 100)
  close(direction, g_x + c * g_a)
  close(metrics["forget_scale"], c)


@pytest.mark.parametrize("sign", [-1, 1])
def test_erasediff_keeps_its_constraint(sign):
  """<g, g_a> >= eta ||g_a||^2, with equality where the rule is active."""
  rng = np.random.default_rng(3)
  for _ in range(20):
    g_a = rng.standard_normal(50).astype(np.float32)
    g_x = (0.3 * rng.standard_normal(50) + sign * g_a).astype(np.float32)
    direction, metrics = erasediff.Method(eta=0.1).combine(
      ({"w": jnp.asarray(g_x)}, {"w": jnp.asarray(g_a)}), {}
    )
    inner, bound = np.vdot(np.float64(direction["w"]), g_a), 0.1 * np.vdot(g_a, g_a)
    assert inner >= bound * (1 - 1e-4)
    if sign < 0:
      np.testing.assert_allclose(inner, bound, rtol=1e-4)
    else:
      np.testing.assert_array_equal(direction["w"], g_x)
    assert metrics["forget_skipped"] == 0


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_erasediff_leaves_out_a_gradient_without_a_norm(bad):
  g_x, g_a = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, bad])}
  direction, metrics = erasediff.Method().combine((g_x, g_a), {})
  np.testing.assert_array_equal(direction["w"], g_x["w"])
  assert metrics["forget_skipped"] == 1 and metrics["forget_scale"] == 0


def prepare(data=DATA, **fields):
  return retrack.Method(**fields).prepare(linear, {"w": W}, PROCESS, data, jax.random.key(0))


def brute_force_nearest(image, k):
  distance = np.sum((np.float64(DATA["x"].image) - image) ** 2, axis=(1, 2, 3))
  return DATA["x"].image[np.argsort(distance)[:k]]


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_retrack_finds_the_nearest_retained_images(chunk):
  class Chunked(methods.Rows):
    def chunks(self, size=chunk):
      return super().chunks(chunk)

  extras = prepare({k: Chunked(*rows) for k, rows in DATA.items()}, neighbours=4)
  assert extras["neighbours"].shape == (6, 4, *SHAPE)
  for image, index in zip(DATA["a"].image, DATA["a"].index, strict=True):
    row = extras["image"][np.flatnonzero(np.asarray(extras["record"]) == index)[0]]
    got = {y.tobytes() for y in np.asarray(extras["neighbours"][row])}
    assert got == {y.tobytes() for y in brute_force_nearest(image, 4)}


def test_retrack_finds_neighbours_once_for_copies_and_looks_them_up_by_record_number():
  image = DATA["a"].image[[0, 1, 0, 0, 2, 1]]
  copies = methods.Rows(image, None, np.array([50, 7, 90, 31, 8, 60], np.int32))
  extras = prepare({"x": DATA["x"], "a": copies}, neighbours=3)
  assert extras["neighbours"].shape[0] == 3
  batch = {"x": jax.tree.map(lambda v: v[:6], DATA["x"]), "a": copies}
  draws = jax.jit(lambda: retrack.Method().draw(PROCESS, batch, jax.random.key(0), extras, 0))()
  for row, a in zip(draws["image"], image, strict=True):
    got = {y.tobytes() for y in np.asarray(extras["neighbours"][row])}
    assert got == {y.tobytes() for y in brute_force_nearest(a, 3)}


def test_retrack_refuses_more_neighbours_than_there_are():
  with pytest.raises(ValueError, match=r"^neighbours is 31; use at most 30"):
    prepare(neighbours=31)


@pytest.mark.parametrize("k", [1, 10])
def test_retrack_is_its_equations(k):
  weight = 0.3
  extras = prepare(neighbours=k)
  draws, grads, direction, metrics = step("retrack", extras, neighbours=k, weight=weight)
  loss_x, g_x = loss_and_grad(noised(draws["x"], draws), draws["eps"])
  a_t, t = noised(draws["a"], draws), draws["t"][:, None, None, None]
  # v_k in float64 and its softmax as they stand in the paper
  y = np.moveaxis(np.float64(extras["neighbours"])[draws["image"]], 1, 0)
  v = (a_t - GAMMA[t] * y) / SIGMA[t]
  log_p = -np.sum(v**2, axis=(2, 3, 4)) / 2
  p = np.exp(log_p - log_p.max(axis=0))
  p /= p.sum(axis=0)
  error = np.sum((np.float64(W) * a_t - v) ** 2, axis=(2, 3, 4))
  mean_v = np.einsum("kb,kbhwc->bhwc", p, v)
  close(metrics["loss_x"], loss_x)
  close(metrics["loss_u"], np.mean(np.sum(p * error, axis=0)))
  close(grads, [g_x, loss_and_grad(a_t, mean_v)[1]])
  close(direction, (1 - weight) * g_x + weight * grads[1])


def test_retrack_with_one_neighbour_targets_the_noise_that_leads_to_it():
  extras = prepare(neighbours=1)
  method = retrack.Method(neighbours=1)
  draws = method.draw(PROCESS, BATCH, jax.random.key(1), extras, 0)
  y = np.concatenate([brute_force_nearest(a, 1) for a in np.asarray(BATCH["a"].image)])
  a_t = PROCESS.q_sample(draws["a"], draws["t"], draws["eps"])
  v = PROCESS.eps(a_t, jnp.asarray(y), draws["t"])
  np.testing.assert_allclose(PROCESS.x0(a_t, draws["t"], v), y, atol=2e-4)
  predicts = iter([draws["eps"], v])  # for x_t, then for a_t
  losses, _ = method.losses(lambda x_t, t, c: next(predicts), PROCESS, draws, extras)
  np.testing.assert_allclose(losses, [0, 0], atol=1e-6)
