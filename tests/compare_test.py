"""Ways to attribute against the exact oracle, on Gaussian mixtures known in closed form."""

import csv
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxunlearn.cdm import compare
from jaxunlearn.cdm.compare import ORACLE, Scores
from tests import attribution_test as toy
from tests import toys

PROCESS, LEVELS, D = toy.PROCESS, toy.LEVELS, toy.D


def eps_of(keep):
  """The exact predictor of the mixture of those sources, at their priors."""
  keep = list(keep)
  prior = toy.PRIOR[keep] / toy.PRIOR[keep].sum()
  means = toy.MEANS[keep].reshape(-1, *toy.SHAPE)
  return toys.mixture_eps_fn(PROCESS, means, toy.STD, np.repeat(prior / toy.K, toy.K))


def log_p(keep, x):
  """In closed form, blurred by the first noise level."""
  keep = list(keep)
  v = toy.STD**2 + np.exp(2 * LEVELS[0])
  gap = np.float64(x).reshape(-1, 1, 1, D) - toy.MEANS[keep].reshape(-1, toy.K, D)
  log_n = -np.sum(gap**2, -1) / (2 * v) - D / 2 * np.log(2 * np.pi * v)
  prior = toy.PRIOR[keep] / toy.PRIOR[keep].sum() / toy.K
  return special.logsumexp(log_n + np.log(prior)[:, None], axis=(1, 2))


EVERY = range(toy.N)
WITHOUT = [[j for j in EVERY if j != i] for i in EVERY]
EXACT = np.stack([log_p(EVERY, toy.X) - log_p(keep, toy.X) for keep in WITHOUT], axis=1)


def test_the_oracle_is_the_change_of_the_likelihood():
  v = toy.attribution.basis(toy.X.shape)
  found = compare.oracle(eps_of(EVERY), list(map(eps_of, WITHOUT)), PROCESS, toy.X, v, 1e-5)
  # Without a source the mixture is not centred, which N(0, I) at the last time is.
  np.testing.assert_allclose(found, EXACT, atol=0.02)
  assert np.abs(EXACT).max() > 0.5


def test_the_gap_of_bounds_is_that_of_likelihoods_where_models_are_exact():
  """Of the true reverse process the bound is tight; 4,096 draws leave a small error."""
  found = compare.gaps(
    eps_of(EVERY), list(map(eps_of, WITHOUT)), PROCESS, toy.X, jax.random.key(0), 4096
  )
  np.testing.assert_allclose(found, EXACT, atol=0.3)
  assert np.abs(found - EXACT).mean() < 0.1


def test_a_model_has_no_gap_to_itself():
  gap = compare.elbo_gap(eps_of(EVERY), eps_of(EVERY), PROCESS, toy.X, jax.random.key(0), 8)
  np.testing.assert_array_equal(gap, 0)


def test_ranks():
  a = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]])
  b = np.array([[10.0, 20, 30, 40], [4, 3, 2, 1], [1, 2, 3, 4]])
  np.testing.assert_allclose(compare.spearman(a, b)[:2], [1, -1])
  assert np.isnan(compare.spearman(a, b)[2])
  rows = {r["name"]: r for r in compare.ranked({ORACLE: Scores(b, 9.0), "way": Scores(a, 2.0)})}
  assert rows[ORACLE]["spearman"] == 1 and rows[ORACLE]["first"] == 1
  assert rows["way"]["spearman"] == 0 and rows["way"]["images"] == 2
  assert rows["way"]["first"] == pytest.approx(1 / 3) and rows["way"]["seconds"] == 2.0


def test_files(tmp_path):
  values = np.arange(6.0).reshape(2, 3)
  scores = {ORACLE: Scores(values, 1.0), "weight": Scores(values**2, 0.5)}
  table = compare.write(tmp_path / "out", ("a", "b", "c"), ("x", "y"), scores)
  assert "| weight | 1.00 ± 0.00 | 100% | 2 | 0.5 |" in table
  rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
  assert rows[4] == {"id": "y", "source": "b", "oracle": "4", "weight": "16"}
  assert (tmp_path / "out.svg").read_text().startswith("<svg")
  assert jnp.isfinite(jnp.asarray(values)).all()
