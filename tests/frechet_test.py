"""The Frechet distance against closed forms, and streamed moments against NumPy's."""

import numpy as np
import pytest
import scipy.linalg

from jaxunlearn.evals import frechet


def sample(seed, n=200, d=6):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def distance(a, b):
  return frechet.distance(frechet.moments(a), frechet.moments(b))


def general_root(a, b):
  """The distance by a general matrix root of the product, of NumPy's covariances."""
  cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = scipy.linalg.sqrtm(cov_a @ cov_b).real
  return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)


@pytest.mark.parametrize("d", [2, 6, 64])
def test_distance_is_that_of_a_general_matrix_root(d):
  a, b = sample(0, d=d), sample(1, 300, d)
  assert distance(a, b) == pytest.approx(general_root(a, b), rel=1e-9)


def test_distance_of_gaussians_with_diagonal_covariances():
  """||mu_1 - mu_2||^2 + sum (sd_1 - sd_2)^2."""
  got = frechet.distance(
    frechet.Moments(2, np.array([1.0, 2.0]), np.diag([4.0, 9.0])),
    frechet.Moments(2, np.array([0.0, 4.0]), np.diag([1.0, 0.0])),
  )
  assert got == pytest.approx(1 + 4 + 1 + 9)


@pytest.mark.parametrize("n", [2, 40, 500])  # under 64 the covariance is singular
def test_distance_of_a_set_with_itself_is_0(n):
  a = sample(0, n, 64)
  assert distance(a, a) <= 1e-6 * np.trace(np.cov(a, rowvar=False))


@pytest.mark.parametrize("n", [3, 30, 300])
def test_distance_keeps_under_rotations_and_is_symmetric(n):
  a, b = sample(0, n, 40), sample(1, n, 40)
  rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))
  assert distance(a @ rotation + 3, b @ rotation + 3) == pytest.approx(distance(a, b), rel=1e-6)
  assert distance(b, a) == pytest.approx(distance(a, b), rel=1e-6)
  assert distance(3 * a, 3 * b) == pytest.approx(9 * distance(a, b), rel=1e-6)
  assert distance(a, a + 0.5) == pytest.approx(40 / 4, rel=1e-6)


def test_distance_of_singular_covariances_is_that_of_their_factors():
  """C = B B^T of few columns: the trace of the root is the sum of singular values of B_1^T B_2."""
  a, b = sample(0, 5, 40), sample(1, 7, 40)
  factor = lambda x: (x - x.mean(0)).T / np.sqrt(len(x) - 1)
  cross = np.linalg.svd(factor(a).T @ factor(b), compute_uv=False).sum()
  squares = sum(np.sum(factor(x) ** 2) for x in (a, b))
  want = np.sum((a.mean(0) - b.mean(0)) ** 2) + squares - 2 * cross
  assert distance(a, b) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("sizes", [(30,), (1,) * 30, (7, 0, 13, 10), (0, 29, 1), (16, 14)])
def test_streamed_moments_are_numpys_however_they_come(sizes):
  features = (100 + np.random.default_rng(0).normal(size=(30, 4))).astype(np.float32)
  parts = np.split(features, np.cumsum(sizes)[:-1])
  got = frechet.stream(iter(parts), 4)
  assert got.n == 30
  np.testing.assert_allclose(got.mean, features.astype(np.float64).mean(0), rtol=1e-14)
  np.testing.assert_allclose(got.cov, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)


def test_one_row_is_a_point_mass_and_none_a_point_mass_at_0():
  assert distance(np.full((1, 3), 2.0), np.zeros((0, 3))) == pytest.approx(12)
