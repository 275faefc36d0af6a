"""The likelihood against densities known in closed form: Gaussians and a mixture of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jaxunlearn import evals
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import nll
from tests import toys

PROCESS = Diffusion()
LEVELS = PROCESS.log_noise_to_signal()
SHAPE = (2, 2, 1)
B, D, K = 4, 4, 3  # images, their dimensions, Gaussians: one shape, so few compilations
S_0 = float(np.exp(LEVELS[0]))  # the noise of the level at which the image stands


def mixture_bits(x, means, variance):
  """-log2 density per dimension, of the data blurred by the first noise level, in float64."""
  gap = x.reshape(len(x), 1, -1).astype(np.float64) - means.reshape(1, len(means), -1)
  total = variance + S_0**2
  log_n = -np.sum(gap**2, -1) / (2 * total) - gap.shape[-1] / 2 * np.log(2 * np.pi * total)
  log_p = np.logaddexp.reduce(log_n, axis=1) - np.log(len(means))
  return -log_p / gap.shape[-1] / np.log(2) + np.log2(127.5)


def bind(means, variance):
  return toys.mixture_eps_fn(PROCESS, means, np.sqrt(variance), np.ones(len(means)) / len(means))


def images(n, seed, scale=1.0):
  return (scale * np.random.default_rng(seed).normal(size=(n, *SHAPE))).astype(np.float32)


def mixture(variance, seed=3):
  """K centred means, and B images drawn around them.

  Centred, because the prior N(0, I) at the last time forgets the mean of the data: with it the
  exact log density differs by gamma_T <x_T, mean>, about .005 bits/dim and no error of the solver.
  """
  means = images(K, seed, 0.6)
  means -= means.mean(axis=0)
  return means, means[np.arange(B) % K] + images(B, seed + 1, np.sqrt(variance + S_0**2))


def exact_bits(eps_fn, x, tolerance):
  """With the probes 2 e_i: their mean of v^T J v is the exact trace."""
  basis = 2 * np.eye(D, dtype=np.float32).reshape(D, 1, *SHAPE)
  log_p, ok = nll.log_density(eps_fn, PROCESS, x, np.repeat(basis, B, axis=1), tolerance)
  assert ok
  return -np.asarray(log_p).mean(1) / np.log(2) + nll.OFFSET


@pytest.mark.parametrize("variance", [1.0, 0.04])
def test_isotropic_gaussian_by_rademacher_probes(variance):
  """tr(J) of an isotropic Gaussian is exact under every sign probe: each probe is right alone."""
  means, x = np.zeros((K, *SHAPE)), images(B, 2, np.sqrt(variance))
  bits, solver = nll.nll_bits(bind(means, variance), PROCESS, jax.random.key(0), x, D, 1e-5)
  assert solver == "dopri5:1e-05"
  want = np.repeat(mixture_bits(x, means, variance)[:, None], D, axis=1)
  np.testing.assert_allclose(bits, want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("variance", [0.3, 0.05])
def test_mixture_with_the_exact_divergence(variance):
  means, x = mixture(variance)
  got = exact_bits(bind(means, variance), x, 1e-5)
  np.testing.assert_allclose(got, mixture_bits(x, means, variance), atol=1e-3, rtol=0)


def test_memorised_image_is_as_likely_as_its_noise_level_allows():
  """A point mass blurred by s_0: log2(s_0 sqrt(2 pi)) + log2(127.5) bits/dim at the point."""
  x = np.repeat(images(1, 5, 0.5), B, axis=0)
  want = np.log2(S_0 * np.sqrt(2 * np.pi)) + np.log2(127.5)
  got = exact_bits(bind(x[:K], 0.0), x, 1e-5)
  np.testing.assert_allclose(got, want, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("tolerance", "atol"), [(1e-4, 3e-3), (None, 2e-2)])
def test_the_default_tolerance_and_the_fixed_steps_are_near(tolerance, atol):
  means, x = mixture(0.05)
  got = exact_bits(bind(means, 0.05), x, tolerance)
  np.testing.assert_allclose(got, mixture_bits(x, means, 0.05), atol=atol, rtol=0)


def test_probes_are_unbiased_on_a_mixture():
  means, x = mixture(0.05)
  draw = lambda seed: nll.nll_bits(bind(means, 0.05), PROCESS, jax.random.key(seed), x, D, 1e-5)[0]
  bits = np.concatenate([draw(seed) for seed in range(64)], axis=1)
  error = bits.std(axis=1, ddof=1) / np.sqrt(bits.shape[1])
  assert np.all(np.abs(bits.mean(axis=1) - mixture_bits(x, means, 0.05)) < 4 * error + 1e-3)


@pytest.mark.parametrize("variance", [1.0, 0.04])
def test_the_flow_by_whole_times_of_a_gaussian_is_its_closed_form(variance):
  """x - eps / sigma_k = (1 - 1 / v_k) x: from one whole time to the next x grows by a factor."""
  v = PROCESS.abar * variance + 1 - PROCESS.abar
  edges = np.append(1e-5, np.arange(1, 1000) / 999)
  beta = 1000 * (1e-4 + edges * (0.02 - 1e-4))
  whole = (beta[1:] + beta[:-1]) / 2 * np.diff(edges)  # beta is linear
  growth = np.sum(-whole / 2 * (1 - 1 / v[:-1]))
  means, x = np.zeros((K, *SHAPE)), images(B, 2, np.sqrt(variance))
  mean_square = np.mean(np.float64(x) ** 2, axis=(1, 2, 3))
  log_p = -0.5 * (mean_square * np.exp(2 * growth) + np.log(2 * np.pi)) + growth
  kind = {"tolerance": 1e-5, "protocol": "siss"}
  bits, solver = nll.nll_bits(bind(means, variance), PROCESS, jax.random.key(0), x, D, **kind)
  assert solver == "siss:rk4"
  want = np.repeat((7 - log_p / np.log(2))[:, None], D, axis=1)
  np.testing.assert_allclose(bits, want, atol=2e-4, rtol=0)


def test_the_flow_by_whole_times_asks_at_nothing_else():
  asked = []

  def eps_fn(x_t, t, c=None):
    asked.append(t.dtype)
    return 0.1 * x_t

  partial = jax.tree_util.Partial(eps_fn)
  nll.log_density(partial, PROCESS, images(1, 0), np.ones((1, 1, *SHAPE)), None, whole_times=True)
  assert {np.dtype(kind) for kind in asked} == {np.dtype(np.int32)}


def test_a_protocol_that_is_not_there_is_named():
  options = common.get_config().eval
  options.nll_protocol = "sis"
  with pytest.raises(ValueError, match=r"no NLL protocol 'sis' \(did you mean 'siss'"):
    evals.check("nll", options)


def test_one_compilation_serves_every_set_of_parameters():
  exact_bits(bind(*mixture(0.05)[:1], 0.05), images(B, 0), 1e-5)
  size = nll.log_density._cache_size()
  exact_bits(bind(*mixture(0.2, seed=9)[:1], 0.2), images(B, 0), 1e-5)
  assert nll.log_density._cache_size() == size


def wave_eps(x_t, t, c=None, *, gain):
  return jnp.sin(gain * x_t)


def test_a_flow_too_stiff_for_adaptive_steps_falls_back_and_says_so():
  eps_fn = jax.tree_util.Partial(wave_eps, gain=jnp.float32(1e6))
  bits, solver = nll.nll_bits(eps_fn, PROCESS, jax.random.key(0), images(1, 0), 1, 1e-4)
  assert solver == "heun200"
  assert np.isfinite(bits).all()


def test_an_overflowing_model_has_an_infinite_value_that_says_so():
  eps_fn = jax.tree_util.Partial(wave_eps, gain=jnp.float32(np.inf))
  bits, solver = nll.nll_bits(eps_fn, PROCESS, jax.random.key(0), images(1, 0), 1, 1e-4)
  assert solver == "overflow"
  assert np.isposinf(bits).all()
