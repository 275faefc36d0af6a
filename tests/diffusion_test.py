"""The process: identities, diffusers' schedules in PyTorch, NumPy in float64."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn.diffusion import SCHEDULES, Diffusion

SHAPE = (8, 4, 4, 3)
T_ROWS = jnp.array([0, 1, 10, 100, 250, 500, 900, 999])


def images(seed, shape=SHAPE):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def scheduler(schedule):
  return diffusers.DDPMScheduler(beta_schedule=schedule, beta_start=1e-4, beta_end=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_variance_is_preserved(schedule):
  process = Diffusion(schedule)
  t = jnp.arange(process.T)
  gamma, sigma = process.gamma(t), process.sigma(t)
  assert gamma.shape == sigma.shape == (process.T, 1, 1, 1)
  np.testing.assert_allclose(gamma**2 + sigma**2, 1, rtol=3e-7)
  assert np.all(np.diff(gamma.ravel()) < 0)
  np.testing.assert_allclose(
    process.log_noise_to_signal(), np.log(np.float64(sigma / gamma)).ravel(), rtol=0, atol=3e-7
  )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_is_that_of_diffusers(schedule):
  # diffusers multiplies up in float32
  theirs = scheduler(schedule).alphas_cumprod.numpy()
  np.testing.assert_allclose(Diffusion(schedule).abar, theirs, rtol=2e-5)


def test_the_noise_of_v_is_that_of_diffusers():
  """v = gamma eps - sigma x, its eps again, between the times too; DDIM's steps as diffusers'."""
  process = Diffusion(prediction="v_prediction")
  x, eps = images(0), images(1)
  x_t = process.q_sample(x, T_ROWS, eps)
  v = process.gamma(T_ROWS) * eps - process.sigma(T_ROWS) * x
  for t in (T_ROWS, T_ROWS.astype(jnp.float32)):
    np.testing.assert_allclose(process.noise_of(v, x_t, t), eps, atol=2e-5)
  assert Diffusion().noise_of(v, x_t, T_ROWS) is v
  theirs = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
  theirs.set_timesteps(1000)
  torch_of = lambda a: torch.from_numpy(np.array(a))
  for i, t in enumerate(T_ROWS.tolist()):
    want = theirs.step(torch_of(v[i]), t, torch_of(x_t[i])).pred_original_sample
    found = process.x0(x_t, T_ROWS, process.noise_of(v, x_t, T_ROWS))[i]
    np.testing.assert_allclose(found, want, atol=2e-3 if t > 900 else 2e-5)


def test_a_network_of_v_is_one_predictor_of_noise():
  process = Diffusion(prediction="v_prediction")
  apply = lambda params, x, t, c=None: params * x
  noise = process.predictor(apply)
  assert process.predictor(apply) is noise and Diffusion().predictor(apply) is apply
  x = images(2)
  want = process.gamma(T_ROWS) * 3 * x + process.sigma(T_ROWS) * x
  np.testing.assert_allclose(noise(3.0, x, T_ROWS), want, rtol=1e-6)


def test_given_betas_are_taken_as_diffusers_takes_them():
  betas = np.linspace(0.001, 0.3, 50).tolist()
  theirs = diffusers.DDPMScheduler(num_train_timesteps=50, trained_betas=betas)
  ours = Diffusion(T=50, betas=betas)
  np.testing.assert_allclose(ours.abar, theirs.alphas_cumprod.numpy(), rtol=2e-5)
  assert hash(ours) == hash(Diffusion(T=50, betas=tuple(betas)))
  with pytest.raises(ValueError, match="50 betas for T 1000 times; give one for each"):
    Diffusion(betas=betas)
  with pytest.raises(ValueError, match=r"betas is \(0\.1, 1\.5\); use more than 0, to under 1"):
    Diffusion(T=2, betas=(0.1, 1.5))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample_is_add_noise_of_diffusers(schedule):
  x, eps = images(0), images(1)
  theirs = scheduler(schedule).add_noise(*(torch.from_numpy(np.array(a)) for a in (x, eps, T_ROWS)))
  ours = Diffusion(schedule).q_sample(x, T_ROWS, eps)
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_q_sample_eps_and_x0_are_inverse():
  process = Diffusion()
  x, eps = images(0), images(1)
  x_t = process.q_sample(x, T_ROWS, eps)
  # Rounding of x_t comes back divided by sigma (eps) or gamma (x0).
  error_eps = np.abs(process.eps(x_t, x, T_ROWS) - eps) * process.sigma(T_ROWS)
  error_x0 = np.abs(process.x0(x_t, T_ROWS, eps) - x) * process.gamma(T_ROWS)
  assert error_eps.max() < 1e-6
  assert error_x0.max() < 1e-6


@pytest.mark.parametrize("t", [0, 10, 250, 700, 999])
def test_log_q_ratio_against_float64(t):
  process = Diffusion()
  x, a, eps = (images(seed, (8, 32, 32, 3)) for seed in range(3))
  rows = jnp.full(8, t)
  m_t = process.q_sample(x, rows, eps)

  def log_ratio(dtype):
    m, gamma = np.asarray(m_t, dtype), dtype(np.sqrt(process.abar[t]))
    square = lambda y: np.sum((m - gamma * np.asarray(y, dtype)) ** 2, axis=(1, 2, 3))
    return (square(x) - square(a)) / (2 * (1 - process.abar[t]))

  exact = log_ratio(np.float64)
  scale = np.abs(exact).mean()
  ours = np.abs(process.log_q_ratio(m_t, a, x, rows) - exact).max() / scale
  assert ours < 3e-6
  if t == 999:  # where the difference of two norms cancels
    naive = np.abs(log_ratio(np.float32) - exact).max() / scale
    assert naive > 100 * ours


def test_log_q_ratio_is_antisymmetric_and_zero_between_equals():
  process = Diffusion()
  x, a, m_t = (images(seed) for seed in range(3))
  np.testing.assert_allclose(
    process.log_q_ratio(m_t, a, x, T_ROWS), -process.log_q_ratio(m_t, x, a, T_ROWS), rtol=1e-6
  )
  assert not np.any(process.log_q_ratio(m_t, x, x, T_ROWS))


def chi_square_per_bin(t, T):
  """About 1 for uniform times: the mean over bins of (count - expected)^2 / expected."""
  expected = t.size / T
  return np.mean((np.bincount(t.ravel(), minlength=T) - expected) ** 2) / expected


def test_sample_t_is_uniform():
  process = Diffusion()
  t = np.asarray(process.sample_t(jax.random.key(0), 100_000))
  assert t.min() == 0
  assert t.max() == process.T - 1
  assert 0.8 < chi_square_per_bin(t, process.T) < 1.2  # s.d. sqrt(2 / 1000) = .045


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
def test_stratified_t_has_one_per_stratum_and_is_uniform(n):
  process = Diffusion()
  draws = 200_000 // n
  keys = jax.random.split(jax.random.key(0), draws)
  t = np.asarray(jax.vmap(lambda key: process.stratified_t(key, n))(keys))
  assert t.dtype == np.int32
  lower = np.arange(n) * process.T / n  # the stratum [lower, lower + T / n), floored
  assert np.all(t >= np.floor(lower))
  assert np.all(t <= np.minimum(np.floor(lower + process.T / n), process.T - 1))
  assert chi_square_per_bin(t, process.T) < 1.2  # strata can only make it more even
  np.testing.assert_allclose(t.mean(), (process.T - 1) / 2, atol=4 * 289 / np.sqrt(t.size))


def test_stratified_t_is_a_permutation_where_strata_are_single_times():
  np.testing.assert_array_equal(Diffusion().stratified_t(jax.random.key(3), 1000), np.arange(1000))


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"schedule": "linaer"}, "did you mean 'linear'"),
    ({"beta_1": 0.5}, "0 < beta_1 <= beta_T < 1"),
  ],
)
def test_a_bad_process_says_the_rule(fields, words):
  with pytest.raises(ValueError, match=words):
    Diffusion(**fields)
