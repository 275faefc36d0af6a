"""The verdict test against dense algebra, its exactness, and what it says and refuses."""

import dataclasses

import numpy as np
import pytest

from jaxunlearn.evals import three_sample, witness
from jaxunlearn.evals.three_sample import ORIGINAL, RETRAINED, UNDECIDED, Settings

QUICK = Settings(permutations=99)


def normal(seed, *means, n=60, size=2):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=(n, size)) + mean for mean in means]


def kernel(x, y, bandwidth=1.0):
  return np.exp(-np.sum((x[:, None] - y) ** 2, axis=-1) / (2 * bandwidth**2))


# The witness.


def test_the_witness_solves_the_regression_that_defines_it():
  """min_h E_P[h^2] - 2 (E_Q[h] - E_P[h]) + lam ||h||^2 over h = sum_i a_i k(z_i, .)."""
  p, q = normal(0, 0, 1, n=12)
  z, lam = np.concatenate([p, q]), 0.3
  k, on_p, on_q = kernel(z, z), kernel(z, p), kernel(z, q)
  a = np.linalg.lstsq(on_p @ on_p.T / 12 + lam * k, on_q.mean(1) - on_p.mean(1), rcond=None)[0]
  found = witness.Witnesses(k, 12).of(np.full((12, 1), 1 / 12), lam)[:, 0]
  np.testing.assert_allclose(found, k @ a, rtol=1e-6, atol=1e-8)


def test_chi2_is_the_supremum_and_its_other_end_is_mmd():
  p, q = normal(1, 0, 1, n=15)
  z = np.concatenate([p, q])
  k = kernel(z, z)
  chi2 = witness.divergences(1.0)["chi2"]

  def value(lam):
    h = witness.Witnesses(k, 15).of(np.full((15, 1), 1 / 15), lam)[:, 0]
    return chi2.of_q(h[15:]).mean() - chi2.of_p(h[:15]).mean()

  mmd = kernel(p, p).mean() + kernel(q, q).mean() - 2 * kernel(p, q).mean()
  assert 1e6 * value(1e6) == pytest.approx(mmd, rel=1e-5)
  a = np.random.default_rng(2).normal(size=30)
  for scale in (0.01, 0.1, 1):  # no other h in the span is above
    h, norm = scale * k @ a, scale**2 * a @ k @ a
    assert 2 * h[15:].mean() - np.mean(2 * h[:15] + h[:15] ** 2) - 0.1 * norm < value(0.1)


def test_the_ratio_of_two_normals():
  """dQ/dP of N(.5, 1) and N(0, 1) at x is exp(x / 2 - 1 / 8); large samples, little lam."""
  p, q = normal(3, 0, 0.5, n=400, size=1)
  k = np.exp(-witness.squared_distances(*[np.concatenate([p, q])] * 2) / 2)
  h = witness.Witnesses(k, 400).of(np.full((400, 1), 1 / 400), 1e-2)[:400, 0]
  near = abs(p[:, 0]) < 1.5
  np.testing.assert_allclose(1 + h[near], np.exp(p[near, 0] / 2 - 1 / 8), atol=0.2)


def test_the_hockey_stick_counts_where_the_ratio_is_above_the_order():
  stick = witness.divergences(2.0)["hockey_stick"]
  h = np.array([0.5, 1.5, -3.0, 1.01])  # ratios 1.5, 2.5, -2, 2.01
  assert stick.of_q(h).tolist() == [0, 1, 0, 1] and stick.of_p(h).tolist() == [0, 2, 0, 2]


# The statistic.


def test_a_difference_and_its_variance_are_those_of_their_formulas():
  u, r, o = normal(4, 0, 1, -0.5, n=25)
  settings = Settings(bandwidths=(1.0,), lam=(0.1,), permutations=1)
  pool = np.concatenate([r, o])
  of_r = np.arange(50)[:, None] < 25
  points = np.concatenate([u, pool])
  squared = np.sum((points[:, None] - points) ** 2, axis=-1)
  median = np.median(np.sqrt(squared[np.triu_indices(75, 1)]))
  k = np.exp(-squared / (2 * median**2))
  solve = lambda rows: np.linalg.solve(k[:25, :25] + 2.5 * np.eye(25), rows)

  def h(q):  # at every point, for the sample at rows q
    mean = k[:, q].mean(1) - k[:, :25].mean(1)
    return (mean - k[:, :25] @ solve(mean[:25])) / 0.1

  h_r, h_o = h(np.arange(25, 50)), h(np.arange(50, 75))
  chi2 = (h_r[25:50].mean() - h_r[:25].mean()) - (h_o[50:].mean() - h_o[:25].mean())
  terms = 2 * h_o[:25] + h_o[:25] ** 2 - 2 * h_r[:25] - h_r[:25] ** 2
  square = (terms.var() + np.var(2 * h_r[25:50]) + np.var(2 * h_o[50:])) / 25
  above = lambda h: np.float64(1 + h > 1)
  stick = (above(h_r)[25:50].mean() - above(h_r)[:25].mean()) - (
    above(h_o)[50:].mean() - above(h_o)[:25].mean()
  )
  (t, squares), (t_stick, _) = three_sample._differences(u, pool, of_r, settings)
  np.testing.assert_allclose([t[0], squares[0], t_stick[0]], [chi2, square, stick], rtol=1e-8)


def test_a_term_is_how_the_divergence_moves_with_a_point():
  """The derivative by the weight of a point of Q is 2 h there less its mean: h counts as fixed."""
  p, q = normal(5, 0, 1, n=20)
  k = kernel(*[np.concatenate([p, q])] * 2)
  witnesses, chi2 = witness.Witnesses(k, 20), witness.divergences(1.0)["chi2"]

  def value(weights):
    h = witnesses.of(weights[:, None], 0.1)[:, 0]
    return weights @ chi2.of_q(h[20:]) - chi2.of_p(h[:20]).mean(), h

  even = np.full(20, 1 / 20)
  step = 1e-6 * (np.eye(20)[3] - even)
  moved = (value(even + step)[0] - value(even - step)[0]) / 2e-6
  h = value(even)[1][20:]
  assert moved == pytest.approx(chi2.moves_q(h)[3] - chi2.moves_q(h).mean(), rel=1e-5)


def test_p_is_exact_where_the_retrained_and_the_original_are_alike():
  """p <= k / 20 in k of 20 draws, whatever U is: 19 permutations and the data are exchangeable."""
  settings = Settings(permutations=19, bandwidths=(0.5,), lam=(0.1,))
  p = []
  for seed in range(300):
    u, r, o = normal(seed, 0.7, 0, 0, n=20)
    verdict = three_sample.three_sample(u, r, o, dataclasses.replace(settings, seed=seed))
    p += [verdict.p, verdict.p_retrained]
  for k in (1, 5, 10):
    assert np.mean(np.array(p) <= k / 20 + 1e-9) == pytest.approx(k / 20, abs=0.04)


# The verdict.


def test_the_verdict_names_the_nearer_and_swapping_swaps():
  u, r, o = normal(6, 0, 0, 1.5)
  found = three_sample.three_sample(u, r, o, QUICK)
  assert found.verdict == RETRAINED and found.p_retrained == 0.01 and found.p > 0.5
  assert three_sample.three_sample(u, o, r, QUICK).verdict == ORIGINAL
  alike = three_sample.three_sample(*normal(7, 0, 0, 0), QUICK)
  assert alike.verdict == UNDECIDED and min(alike.p, alike.p_retrained) > 0.05


def test_the_identity_says_all_that_the_verdict_hangs_on():
  u, r, o = normal(8, 0, 0, 1)
  facts = three_sample.three_sample(u, r, o[:50], QUICK, features="digits:ab").identity
  assert "features=digits:ab n=60:60:50" in facts
  for field in dataclasses.fields(Settings):
    assert f" {field.name}=" in facts


def test_features_that_do_not_vary_are_undecided():
  flat = np.zeros((30, 3))
  assert three_sample.three_sample(flat, flat, flat, QUICK).verdict == UNDECIDED


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"u": np.zeros((3, 2))}, "features of u are (3, 2); give [N, D] of 20 samples or more"),
    ({"r": np.zeros(30)}, "features of r are (30,); give [N, D] of 20 samples or more"),
    ({"o": np.full((30, 2), np.nan)}, "features of o are not all finite; leave out what diverged"),
    ({"o": np.zeros((30, 3))}, "features of different sizes (u 2, r 2, o 3); take those of one"),
  ],
)
def test_what_is_refused(changes, says):
  samples = {name: np.zeros((30, 2)) for name in "uro"} | changes
  with pytest.raises(ValueError) as error:
    three_sample.three_sample(**samples)
  assert str(error.value).startswith(says)


def test_numbers_and_names_of_the_test_are_checked():
  with pytest.raises(ValueError, match=r"^lam is \(0.1, 0.0\); use more than 0$"):
    Settings(lam=(0.1, 0.0))
  with pytest.raises(ValueError, match=r"^no divergence 'chi'"):
    Settings(divergences=("chi",))
