"""Equation (6) on Gaussian mixtures: densities, scores and weights known in closed form."""

import csv
import io
import re
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from jaxunlearn.cdm import attribution
from jaxunlearn.diffusion import Diffusion, flow
from jaxunlearn.evals import nll
from tests import toys

PROCESS = Diffusion()
LEVELS = PROCESS.log_noise_to_signal()
SHAPE = (2, 2, 1)
N, K, B, D = 3, 2, 4, 4  # sources, modes of each, images, their dimensions
PRIOR = np.array([0.5, 0.2, 0.3])
STD = 0.3
KEY = jax.random.key(0)
DRIFT = -D / 2 * np.logaddexp(0, 2 * LEVELS[-1])  # d log gamma_T
NAMES = ("hats", "shoes & socks", "<bags>")


def means_of(seed=0, scale=0.7):
  """[N, K, H, W, C], centred: the prior N(0, I) at the last time forgets the mean of the data."""
  means = scale * np.random.default_rng(seed).normal(size=(N, K, *SHAPE))
  return means - np.tensordot(PRIOR / K, means.sum(1), 1)


MEANS = means_of()
X = (MEANS[[0, 1, 2, 0], [0, 0, 1, 1]] + 0.3).astype(np.float32)


def every(means, x_t, t, c=None):
  """The exact eps of each source."""
  one = lambda m: toys.mixture_eps_fn(PROCESS, m, STD, jnp.full(len(m), 1 / len(m)))(x_t, t, c)
  return jax.vmap(one)(means)


def posterior(means, log_prior, x_t, t):
  """The exact log w_i, at times between two as well."""
  log_r = jnp.interp(t, jnp.arange(len(LEVELS)), jnp.asarray(LEVELS, jnp.float32))
  gamma, sigma = (jnp.sqrt(jax.nn.sigmoid(s * log_r)) for s in (-2, 2))
  apart = x_t[:, None, None] - gamma.reshape(-1, 1, 1, 1, 1, 1) * means
  v = ((gamma * STD) ** 2 + sigma**2)[:, None, None]
  log_p = jax.nn.logsumexp(-jnp.sum(apart**2, (-3, -2, -1)) / (2 * v), axis=2)
  return jax.nn.log_softmax(log_p + log_prior, axis=1)


def blind(means, log_prior, x_t, t):
  """The same weights with no gradient."""
  return jax.lax.stop_gradient(posterior(means, log_prior, x_t, t))


def attribute(means=MEANS, prior=PRIOR, x=X, router=posterior, rng=KEY, **options):
  means, log_prior = jnp.asarray(means, jnp.float32), jnp.log(jnp.asarray(prior, jnp.float32))
  eps_all = jax.tree_util.Partial(every, means)
  weigh = jax.tree_util.Partial(router, means, log_prior)
  options = {"exact": True, "probes": D, "tolerance": 1e-6} | options
  return attribution.attribute(eps_all, weigh, PROCESS, x, rng, **options)


def scores(x, gamma, sigma):
  """w_i s_i [N, D] and w_i [N] at one flat point, in float64."""
  v = (gamma * STD) ** 2 + sigma**2
  apart = gamma * MEANS.reshape(N, K, D) - x
  log_p = -np.sum(apart**2, -1) / (2 * v) + np.log(PRIOR / K)[:, None]
  w = np.exp(log_p - special.logsumexp(log_p))
  return np.einsum("nk,nkd->nd", w, apart) / v, w.sum(1)


def reference(x):
  """Equation (6) as it is printed, in the paper's time: B = int beta dt, from -log abar_0 on.

  dx/dB = -(x + s)/2 and dL_i/dB = -div(w_i s_i)/2, the divergence by central differences; the
  weights' mean is over u, du/dB = 1/(2 sigma^2).
  """
  h = 1e-4 * np.concatenate([np.eye(D), -np.eye(D)])

  def field(big_b, state):
    gamma, sigma = np.exp(-big_b / 2), np.sqrt(-np.expm1(-big_b))
    ws, w = scores(state[:D], gamma, sigma)
    near = np.stack([scores(state[:D] + step, gamma, sigma)[0] for step in h])  # [2D, N, D]
    div = sum(near[k, :, k] - near[D + k, :, k] for k in range(D)) / 2e-4
    return np.concatenate([-(state[:D] + ws.sum(0)) / 2, -div / 2, w / (2 * sigma**2)])

  first, last = -np.log(PROCESS.abar[[0, -1]])
  start = np.concatenate([np.sqrt(PROCESS.abar[0]) * np.float64(x).ravel(), np.zeros(2 * N)])
  end = integrate.solve_ivp(field, (first, last), start, "LSODA", rtol=1e-7, atol=1e-8).y[:, -1]
  return end[:D], end[D : D + N], end[D + N :] / (LEVELS[-1] - LEVELS[0])


def exact_log_p(x):
  """Nats per image under the mixture, blurred by the first noise level."""
  v = STD**2 + np.exp(2 * LEVELS[0])
  gap = np.float64(x).reshape(-1, 1, 1, D) - MEANS.reshape(N, K, D)
  log_n = -np.sum(gap**2, -1) / (2 * v) - D / 2 * np.log(2 * np.pi * v)
  return special.logsumexp(log_n + np.log(PRIOR / K)[:, None], axis=(1, 2))


def test_the_likelihood_is_that_of_the_mixture():
  np.testing.assert_allclose(attribute().log_p, exact_log_p(X), atol=2e-4, rtol=0)


def test_equation_6_in_float64_and_in_the_time_of_the_paper():
  found = attribute()
  x_T, parts, weights = (np.stack(a) for a in zip(*map(reference, X), strict=True))
  np.testing.assert_allclose(found.parts, parts, atol=1e-4, rtol=0)
  np.testing.assert_allclose(found.weights, weights, atol=1e-5, rtol=0)
  prior = -0.5 * np.sum(x_T**2 + np.log(2 * np.pi), axis=1)
  np.testing.assert_allclose(found.log_p_end, prior, atol=1e-4, rtol=0)
  np.testing.assert_allclose(found.credit, parts / parts.sum(1, keepdims=True), atol=1e-4, rtol=0)


@pytest.mark.parametrize("exact", [True, False])
def test_the_terms_sum_to_the_likelihood_and_the_shares_to_one(exact):
  found = attribute(exact=exact)
  total = found.log_p_end + DRIFT + found.parts.sum(1)
  np.testing.assert_allclose(found.log_p, total, atol=1e-5, rtol=1e-6)
  np.testing.assert_allclose(found.credit.sum(1), 1, atol=1e-5)
  np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-5)


def test_without_the_gradient_of_the_router_the_likelihood_is_wrong():
  """The same flow, ends and weights, but sum_i w_i div s_i is not the mixture's divergence."""
  found, want = attribute(router=blind), attribute()
  np.testing.assert_allclose(found.log_p_end, want.log_p_end, atol=1e-3, rtol=0)
  np.testing.assert_allclose(found.weights, want.weights, atol=1e-3, rtol=0)
  assert np.abs(found.log_p - exact_log_p(X)).min() > 0.1
  assert np.abs(found.parts - want.parts).max(1).min() > 0.1


def test_identical_sources_share_by_their_priors():
  found = attribute(means=np.repeat(MEANS[:1], N, axis=0))
  want = np.broadcast_to(PRIOR, (B, N))
  np.testing.assert_allclose(found.credit, want, atol=1e-4)
  np.testing.assert_allclose(found.weights, want, atol=1e-5)


def test_an_image_in_the_mode_of_one_source_far_from_the_others():
  """|mu_i - mu_j| of 400 and more outweighs the noise up to s of about 100, of 157 at the end."""
  means = np.stack([np.full((K, *SHAPE), a) for a in (-200.0, 0.0, 200.0)])
  found = attribute(means, x=means[[2, 0, 1, 2], 0].astype(np.float32) + 0.1)
  assert np.all(found.weights[np.arange(B), [2, 0, 1, 2]] > 0.95)


MODES = MEANS.reshape(N * K, *SHAPE)


def ordinary(weights, probes):
  """Nats per image of the mixture of all modes, by nll.py."""
  eps_fn = toys.mixture_eps_fn(PROCESS, MODES, STD, weights)
  log_p, ok = nll.log_density(eps_fn, PROCESS, X, probes, 1e-6)
  assert ok
  return D * log_p.mean(1)


def test_one_source_is_the_ordinary_likelihood():
  found = attribute(MODES[None], np.ones(1))
  want = ordinary(np.full(N * K, 1 / (N * K)), attribution.basis(X.shape))
  np.testing.assert_allclose(found.log_p, want, atol=1e-4, rtol=0)
  np.testing.assert_allclose(found.parts[:, 0], want - found.log_p_end - DRIFT, atol=1e-4, rtol=0)
  np.testing.assert_allclose(found.credit, 1, atol=1e-6)
  np.testing.assert_allclose(found.weights, 1, atol=1e-5)


def test_probes_are_unbiased():
  parts = np.stack([attribute(rng=jax.random.key(i), exact=False).parts for i in range(64)])
  error = parts.std(axis=0, ddof=1) / np.sqrt(len(parts))
  assert error.min() > 1e-4  # the draws differ
  assert np.all(np.abs(parts.mean(axis=0) - attribute().parts) < 4 * error + 1e-3)


def test_the_error_of_a_credit_is_its_spread_over_probes():
  draw = lambda i: attribute(rng=jax.random.key(i), exact=False, probes=32)
  found = [draw(i) for i in range(64)]
  spread = np.stack([one.credit for one in found]).std(axis=0, ddof=1)
  error = np.sqrt(np.mean([one.credit_error**2 for one in found], axis=0))
  np.testing.assert_allclose(error, spread, rtol=0.4)  # four deviations of 64 draws' own spread
  assert np.all(np.isnan(attribute(exact=False, probes=1).credit_error))
  np.testing.assert_array_equal(attribute().credit_error, 0)


def test_the_sources_share_their_probes():
  """So that the sum of their parts is the mixture's own estimate, whatever its error."""
  v = jax.random.rademacher(KEY, (D, *X.shape), jnp.float32)
  want = ordinary(np.repeat(PRIOR / K, K), v)
  assert np.abs(want - exact_log_p(X)).max() > 1e-2
  np.testing.assert_allclose(attribute(exact=False).log_p, want, atol=1e-4, rtol=0)


def test_permuted_sources_permute_the_answer():
  order = np.array([2, 0, 1])
  found, want = attribute(MEANS[order], PRIOR[order]), attribute()
  np.testing.assert_allclose(found.log_p, want.log_p, atol=1e-4, rtol=0)
  for name in ("parts", "credit", "weights"):
    got, expected = getattr(found, name), getattr(want, name)[:, order]
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_one_compilation_serves_every_composition():
  attribute()
  size = attribution._attribute._cache_size()
  attribute(means_of(5), x=-X)
  assert attribution._attribute._cache_size() == size


def test_the_default_tolerance_is_near():
  found, want = attribute(tolerance=1e-4), attribute()
  np.testing.assert_allclose(found.log_p, want.log_p, atol=2e-2, rtol=0)
  np.testing.assert_allclose(found.credit, want.credit, atol=1e-3, rtol=0)


def test_credit_of_parts_that_cancel_is_nan():
  parts = jnp.array([[3.0, -1.0], [2.0, -2.0], [1000.0, -999.9], [0.0, 0.0]])
  want = [[1.5, -0.5], [np.nan] * 2, [np.nan] * 2, [np.nan] * 2]
  np.testing.assert_allclose(attribution.credits(parts), want)


def wave(gain, x_t, t, c=None):
  return jnp.sin(gain * x_t)[None]


def even(x_t, t):
  return jnp.zeros((len(x_t), 1))


@pytest.mark.parametrize(("gain", "solver"), [(1e6, "heun200"), (np.inf, flow.OVERFLOW)])
def test_a_flow_too_stiff_says_so(gain, solver):
  eps_all = jax.tree_util.Partial(wave, jnp.float32(gain))
  weigh = jax.tree_util.Partial(even)
  found = attribution.attribute(eps_all, weigh, PROCESS, X, KEY, probes=2, tolerance=1e-3)
  assert found.solver == solver
  finite = [np.isfinite(array).all() for array in found[:-1]]
  assert finite == [solver != flow.OVERFLOW] * 6


def test_no_probe():
  with pytest.raises(ValueError, match="probes 0 of an attribution; use 1 or more"):
    attribute(probes=0)


IDS = ("a/1.png", 'say "x", y', "ü", "4")


def test_csv_is_read_back_to_the_bit(tmp_path):
  found = attribute(exact=False)
  found = found._replace(credit=found.credit.at[1].set(jnp.nan))
  attribution.write_csv(tmp_path / "attribution.csv", NAMES, IDS, found)
  rows = list(csv.DictReader(io.StringIO((tmp_path / "attribution.csv").read_text("utf-8"))))
  assert [(row["id"], row["source"]) for row in rows] == [(i, name) for i in IDS for name in NAMES]
  columns = found.parts, found.credit, found.credit_error, found.weights
  for column, want in zip(attribution.COLUMNS[2:], columns, strict=True):
    got = np.array([row[column] for row in rows], np.float32).reshape(B, N)
    np.testing.assert_array_equal(got, want)


def test_csv_of_other_names_is_refused(tmp_path):
  with pytest.raises(ValueError, match="longer"):
    attribution.write_csv(tmp_path / "attribution.csv", NAMES[:2], IDS, attribute())


def test_chart_of_an_image_shows_both_numbers_of_each_source():
  values = jnp.array([[-0.5, 1.25, 0.25], [np.nan, np.nan, np.nan]])
  weights = jnp.array([[0.25, 0.5, 0.25], [0.125, 0.5, 0.375]])
  error = jnp.array([[0.125, np.nan, 0.0], [np.nan, np.nan, np.nan]])
  found = attribution.Attribution(values[:, 0], values[:, 0], values, values, error, weights, "")
  first, second = map(ET.fromstring, attribution.svgs(NAMES, ("a & <b>", "c"), found))
  texts = [text.text for text in first.findall(".//{*}text")]
  assert texts[:3] == ["a & <b>", "credit", "trajectory weight"]
  assert texts[3:6] == [NAMES[0], "-0.5", "0.25"]
  assert texts[6:9] == [NAMES[1], "1.25", "0.5"]
  bars = [(float(b.get("x")), float(b.get("width"))) for b in first.findall(".//{*}rect")][2:]
  zero, one = 235 * 0.5 / 1.75, 235 / 1.75  # the axis is -0.5 .. 1.25
  sides = [(0, 0.5), (zero, 0.25), (zero, 1.25), (zero, 0.5), (zero, 0.25), (zero, 0.25)]
  np.testing.assert_allclose(bars, [(x, w * one) for x, w in sides], atol=0.06)
  whiskers = [path.get("d") for path in first.findall(".//{*}path[@stroke-width]")]
  ends = [float(number) for number in re.findall(r"M([\d.]+) .* H([\d.]+)", whiskers[0])[0]]
  np.testing.assert_allclose(ends, [0, 0.125 * one], atol=0.06)  # it ends with the chart
  assert len(whiskers) == 2 and "hats: credit -0.5 ± 0.125, trajectory" in first.get("aria-label")
  assert len(second.findall(".//{*}rect")) == 2 + N  # nan has no bar
  assert "hats: credit nan, trajectory weight 0.125" in second.get("aria-label")
