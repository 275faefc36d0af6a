"""95% intervals against SciPy's, and where a sample is too small for one."""

import numpy as np
import pytest
import scipy.stats

from jaxunlearn.evals import statistics


@pytest.mark.parametrize(("hits", "n"), [(0, 512), (1, 10), (5, 10), (10, 10), (37, 512)])
def test_wilson_is_scipys(hits, n):
  want = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
  np.testing.assert_allclose(statistics.wilson(hits, n), (want.low, want.high), atol=1e-12)


def test_wilson_of_nothing_is_everything():
  assert statistics.wilson(0, 0) == (0.0, 1.0)


def test_mean_interval_is_scipys():
  values = np.random.default_rng(0).normal(size=7)
  want = scipy.stats.t.interval(0.95, 6, values.mean(), scipy.stats.sem(values))
  np.testing.assert_allclose(statistics.mean_interval(values), want, rtol=1e-12)
  assert statistics.mean_interval(values[:1]) is None


def test_bootstrap_of_the_mean_is_its_standard_error():
  values = np.random.default_rng(0).normal(2, 3, size=400)
  low, high = statistics.bootstrap(np.mean, values, np.random.default_rng(1), 4000)
  assert (low + high) / 2 == pytest.approx(values.mean())
  assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)
  assert statistics.bootstrap(np.mean, values[:1], np.random.default_rng(1)) is None
