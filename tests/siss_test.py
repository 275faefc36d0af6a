"""SISS: the identities of the mixture, NumPy in float64, closed forms, and what is skipped."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import methods
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.methods import siss
from tests import counting

PROCESS = Diffusion()
GAMMA, SIGMA = np.sqrt(PROCESS.abar), np.sqrt(1 - PROCESS.abar)  # float64
LAMS = (0.0, 0.1, 0.5, 0.9, 1.0)


def uniform(seed, shape):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def make_batch(n, shape=(4, 4, 3)):
  """Row i of x and of a have the number i."""
  index = np.arange(n, dtype=np.int32)
  stream = lambda seed: methods.Rows(jnp.asarray(uniform(seed, (n, *shape))), None, index)
  return {"x": stream(1), "a": stream(2)}


@functools.partial(jax.jit, static_argnums=0)
def draw(method, batch, rng):
  return method.draw(PROCESS, batch, rng, {}, 0)


def apply(params, x_t, t, c=None):
  del c
  return jnp.tanh(x_t @ params["w"] + t[:, None, None, None] / 1000)


PARAMS = {"w": 0.3 * np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)}


def term_grads(method, apply, draws):
  """As a step takes them: only the terms that the draws need."""
  needed = tuple(bool(need) for need in method.needed(PROCESS, draws))
  return _term_grads(method, apply, draws, needed)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _term_grads(method, apply, draws, needed):
  params = jax.tree.map(jnp.asarray, PARAMS)
  return methods.term_grads(method, apply, params, PROCESS, draws, {}, needed)


def log_ratio_float64(draws):
  """r by two squared norms in float64, from the m_t that the method has."""
  x, a, t = (np.asarray(draws[k]) for k in ("x", "a", "t"))
  m_t = np.float64(siss.mixture(PROCESS, draws)[0])
  square = lambda y: np.sum((m_t - GAMMA[t, None, None, None] * y) ** 2, axis=(1, 2, 3))
  return (square(np.float64(x)) - square(np.float64(a))) / (2 * SIGMA[t] ** 2)


@pytest.mark.parametrize("lam", LAMS)
def test_weights_sum_to_one_and_are_bounded(lam):
  r = jnp.concatenate([jnp.linspace(-80, 80, 321), jnp.array([-1e-4, 0, 1e-4])])
  w_x, w_a = map(jnp.exp, siss.log_weights(r, lam))
  np.testing.assert_allclose((1 - lam) * w_x + lam * w_a, 1, rtol=1e-6)
  assert np.all(w_x >= 0) and np.all(w_a >= 0)
  assert lam == 1 or np.all(w_x <= (1 + 1e-6) / (1 - lam))
  assert lam == 0 or np.all(w_a <= (1 + 1e-6) / lam)


@pytest.mark.parametrize("lam", (0.0, 0.3, 0.5, 1.0))
@pytest.mark.parametrize("shape", [(28, 28, 1), (256, 256, 3)])
def test_log_weights_are_those_of_float64(shape, lam):
  t = np.repeat([0, 500, 999], 2)
  draws = {
    "x": uniform(1, (6, *shape)),
    "a": uniform(2, (6, *shape)),
    "c": None,
    "t": t,
    "eps": np.random.default_rng(3).standard_normal((6, *shape), dtype=np.float32),
    # lam = 0 never has an a, and its w_a would be infinite there; lam = 1 never an x
    "from_a": np.tile([False, True], 3) if 0 < lam < 1 else np.full(6, lam == 1),
  }
  draws = jax.tree.map(jnp.asarray, draws)
  r = log_ratio_float64(draws)
  with np.errstate(divide="ignore"):
    log_keep, log_forget = np.log(1 - lam), np.log(lam)
  want = -np.logaddexp(log_keep, log_forget + r), -np.logaddexp(log_keep - r, log_forget)
  got = siss.log_weights(siss.mixture(PROCESS, draws)[1], lam)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("lam", [0.5, 0.8])
def test_expected_losses_and_gradients_are_those_of_q_of_x_and_of_a(lam, stratified):
  """E_{q_lam}[w_x f(m_t)] = E_{q(.|x)}[f(x_t)], with eps_theta = theta m_t on one pixel.

  E (eps - theta x_t)^2 = 1 - 2 theta sigma + theta^2 (gamma^2 x^2 + sigma^2), t uniform.
  """
  n, theta, pixel = 400_000, 0.3, {"x": 0.7, "a": -0.4}
  method = siss.Method(lam=lam, stratified=stratified)
  image = lambda v: methods.Rows(jnp.full((n, 1, 1, 1), v), None, jnp.arange(n))

  @jax.jit
  def losses_and_slopes(theta):
    batch = {k: image(v) for k, v in pixel.items()}
    draws = method.draw(PROCESS, batch, jax.random.key(0), {}, 0)
    losses = lambda p: method.losses(lambda m_t, t, c: p * m_t, PROCESS, draws, {})[0]
    return jax.jvp(losses, (theta,), (jnp.ones_like(theta),))

  losses, slopes = losses_and_slopes(jnp.float32(theta))
  for loss, slope, y in zip(losses, slopes, pixel.values(), strict=True):
    square = GAMMA**2 * y**2 + SIGMA**2
    want = np.mean(1 - 2 * theta * SIGMA + theta**2 * square)
    np.testing.assert_allclose(loss, want, rtol=0.01)
    np.testing.assert_allclose(slope, np.mean(-2 * SIGMA + 2 * theta * square), rtol=0.01)


def test_stratified_draws_estimate_the_losses_with_less_variance():
  batch = make_batch(16)

  def variance(stratified):
    method = siss.Method(stratified=stratified)
    one = lambda rng: jnp.stack(
      method.losses(
        lambda m_t, t, c: 0 * m_t, PROCESS, method.draw(PROCESS, batch, rng, {}, 0), {}
      )[0]
    )
    losses = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 400))
    return np.var(losses, axis=0)

  assert np.all(variance(True) < 0.7 * variance(False))


@pytest.mark.parametrize("lam", LAMS)
def test_picks_are_balanced_and_each_row_is_an_a_with_probability_lam(lam):
  n, keys = 20, 4000
  batch, method = make_batch(n, (1, 1, 1)), siss.Method(lam=lam)
  number = methods.Rows(jnp.arange(float(n)).reshape(n, 1, 1, 1), None, batch["x"].index)
  draws = jax.vmap(lambda rng: draw(method, batch | {"x": number}, rng))(
    jax.random.split(jax.random.key(1), keys)
  )
  counts = np.asarray(draws["from_a"]).sum(axis=1)
  assert set(counts) <= {math.floor(n * lam), math.ceil(n * lam)}
  row = np.asarray(draws["x"], int).reshape(keys, n)
  picked = np.zeros(n)
  np.add.at(picked, row[np.asarray(draws["from_a"])], 1)
  np.testing.assert_allclose(picked / keys, lam, atol=5 * 0.5 / np.sqrt(keys))
  np.testing.assert_array_equal(np.sort(draws["t"], axis=1) // 50, np.tile(np.arange(n), (keys, 1)))


@pytest.mark.parametrize("stratified", [True, False])
def test_rows_are_ordered_from_pure_x_to_pure_a_and_pairs_stay(stratified):
  batch = make_batch(32)
  draws = draw(siss.Method(stratified=stratified), batch, jax.random.key(0))
  r = log_ratio_float64(draws)
  assert np.all(np.diff(r) >= -1e-4 * np.abs(r[1:]))
  assert r[0] < -20 and r[-1] > 20 and not draws["from_a"][0] and draws["from_a"][-1]
  pairs = lambda x, a: {(p.tobytes(), q.tobytes()) for p, q in np.stack([x, a], axis=1)}
  assert pairs(draws["x"], draws["a"]) == pairs(batch["x"].image, batch["a"].image)


def test_the_condition_is_that_of_the_picked_image():
  n = 16
  batch = make_batch(n)
  batch["x"] = batch["x"]._replace(c=np.arange(n, dtype=np.int32))
  batch["a"] = batch["a"]._replace(c=100 + np.arange(n, dtype=np.int32))
  draws = draw(siss.Method(), batch, jax.random.key(0))
  number = {image.tobytes(): i for i, image in enumerate(np.asarray(batch["x"].image))}
  rows = np.array([number[np.asarray(x).tobytes()] for x in draws["x"]])
  np.testing.assert_array_equal(draws["c"], rows + 100 * np.asarray(draws["from_a"]))


@pytest.mark.parametrize("lam", [0.2, 0.5, 1.0])
def test_skipping_keeps_the_gradient_and_saves_the_passes(lam):
  n, count = 32, 4
  method = siss.Method(lam=lam)
  # |x - a| is about 23, as from a digit to the T-shirt
  draws = draw(method, make_batch(n, (16, 16, 3)), jax.random.key(0))
  whole, _ = term_grads(siss.Method(lam=lam, skip_below=0.0), apply, draws)
  model = counting.Model(apply)
  parts, passes = [], 0.0
  for rows in np.split(np.arange(n), count):
    grads, metrics = term_grads(method, model, jax.tree.map(lambda v, rows=rows: v[rows], draws))
    parts.append(grads)
    passes += float(metrics["passes"]) / count
  mean = jax.tree.map(lambda *g: sum(g) / count, *parts)
  for got, want in zip(mean, whole, strict=True):
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5, atol=1e-6 * np.abs(want["w"]).max())

  share = 1 / (1 + np.exp(-np.clip(log_ratio_float64(draws), -500, 500))).reshape(count, -1)
  needed = np.sum(np.any(share >= 1e-8, axis=1)) + np.sum(np.any(1 - share >= 1e-8, axis=1))
  assert needed < 2 * count
  assert model.rows() == (n, needed * n / count)
  np.testing.assert_allclose(passes, 1 + 2 * needed / count)


def test_a_term_that_no_row_needs_is_not_pulled_back_and_the_step_is_the_other():
  """lam = 0 at small t: w_a is 0, the gradient of L_A has no norm, and no forget step is taken."""
  method = siss.Method(lam=0.0)
  draws = draw(method, make_batch(8), jax.random.key(0))
  draws = draws | {"t": jnp.zeros_like(draws["t"])}
  model = counting.Model(apply)
  grads, metrics = term_grads(method, model, draws)
  assert model.rows() == (8, 8) and metrics["passes"] == 3
  assert not np.any(grads[1]["w"])
  direction, combined = method.combine(grads, {})
  np.testing.assert_array_equal(direction["w"], grads[0]["w"])
  assert combined["forget_skipped"] == 1


@pytest.mark.parametrize(("lam", "term", "stream"), [(0.0, 0, "x"), (1.0, 1, "a")])
def test_the_ends_of_lam_are_denoising_of_one_stream(lam, term, stream):
  method = siss.Method(lam=lam)
  draws = draw(method, make_batch(16), jax.random.key(0))
  assert np.all(np.asarray(draws["from_a"]) == bool(lam))
  bound = functools.partial(apply, jax.tree.map(jnp.asarray, PARAMS))
  losses, metrics = method.losses(bound, PROCESS, draws, {})
  want = methods.denoising_loss(bound, PROCESS, draws[stream], None, draws["t"], draws["eps"])
  np.testing.assert_allclose(losses[term], want, rtol=1e-4)  # eps again from m_t, at t near 0
  np.testing.assert_allclose(metrics[f"w_{stream}"], 1, rtol=1e-6)
  grads, metrics = term_grads(method, apply, draws)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((grads, metrics)))


def test_a_row_of_no_weight_and_an_infinite_error_adds_nothing():
  method = siss.Method()
  draws = draw(method, make_batch(8), jax.random.key(0))
  keep_x = draws | {"from_a": jnp.zeros(8, bool)}
  far = keep_x | {"a": jnp.full_like(draws["a"], 1e30)}
  grads, metrics = term_grads(method, apply, far)
  assert metrics["loss_a"] == 0 and not np.any(grads[1]["w"])
  assert np.isfinite(metrics["loss_x"]) and np.all(np.isfinite(grads[0]["w"]))


@pytest.mark.parametrize(("fields", "want"), [({"forget_norm": 5.0}, 5.0), ({}, None)])
def test_the_forget_gradient_has_the_asked_size(fields, want):
  method = siss.Method(**fields)
  (g_x, g_a), _ = term_grads(method, apply, draw(method, make_batch(16), jax.random.key(0)))
  direction, metrics = method.combine((g_x, g_a), {})
  forget = jax.tree.map(lambda x, g: np.float64(x) - np.float64(g), g_x, direction)
  norm_x = float(optax.tree.norm(g_x))
  # The direction is rounded at the size of g_x.
  want = 0.1 * norm_x if want is None else want
  np.testing.assert_allclose(np.linalg.norm(forget["w"]), want, atol=1e-6 * norm_x, rtol=1e-6)
  np.testing.assert_allclose(metrics["forget_scale"] * metrics["norm_a"], want, rtol=1e-6)
  cosine = np.vdot(forget["w"], g_a["w"]) / want / float(metrics["norm_a"])
  np.testing.assert_allclose(cosine, 1, rtol=1e-5)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("lam", -0.1),
    ("lam", 1.5),
    ("forget_norm", 0.0),
    ("forget_norm", math.inf),
    ("forget_ratio", 0.0),
    ("skip_below", 0.5),
    ("skip_below", -1e-8),
  ],
)
def test_a_field_out_of_range_is_refused(field, value):
  with pytest.raises(ValueError, match=f"^{field} is {value:g}; use "):
    siss.Method(**{field: value})
