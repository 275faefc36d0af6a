"""95% intervals for shares, means and anything else a metric computes from a sample.

share p of n      Wilson: (p + z^2/2n +- z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n)
mean of n         Student: mean +- t_{n-1} s / sqrt(n)
any statistic     bootstrap, normal form: value +- z (sd of the statistic over resamples)
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

LEVEL = 0.95
Z = float(special.ndtri((1 + LEVEL) / 2))

Interval = tuple[float, float]


def wilson(hits: int, n: int) -> Interval:
  """The interval of a share of `hits` in `n` trials; of none it is all of [0, 1].

  Wilson (1927). Unlike p +- z se it stays in [0, 1] and says something at 0 hits.
  """
  if n == 0:
    return 0.0, 1.0
  p = hits / n
  centre = p + Z**2 / (2 * n)
  half = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
  low, high = (centre - half) / (1 + Z**2 / n), (centre + half) / (1 + Z**2 / n)
  return float(np.clip(low, 0, p)), float(np.clip(high, p, 1))


def mean_interval(values: np.ndarray) -> Interval | None:
  """The interval of the mean of independent `values` [n]; None for fewer than two."""
  values = np.asarray(values, np.float64)
  if len(values) < 2:
    return None
  t = special.stdtrit(len(values) - 1, (1 + LEVEL) / 2)
  half = t * values.std(ddof=1) / np.sqrt(len(values))
  return float(values.mean() - half), float(values.mean() + half)


def bootstrap(
  statistic: Callable[[np.ndarray], float],
  sample: np.ndarray,
  rng: np.random.Generator,
  resamples: int = 200,
) -> Interval | None:
  """The interval of `statistic(sample)` over resamples of its rows; None for fewer than two rows.

  The normal form is centred on the value itself: a distance like the FID is larger on every
  resample than on the sample, so percentiles of the resamples would leave it out.
  """
  return bootstrap_of(statistic, (sample,), rng, resamples)


def bootstrap_of(
  statistic: Callable[..., float],
  samples: Sequence[np.ndarray],
  rng: np.random.Generator,
  resamples: int = 200,
) -> Interval | None:
  """The same of `statistic(*samples)`, each of the samples resampled by itself."""
  if min(map(len, samples)) < 2:
    return None
  again = lambda sample: sample[rng.integers(len(sample), size=len(sample))]
  spread = np.std([statistic(*map(again, samples)) for _ in range(resamples)], ddof=1)
  value = statistic(*samples)
  return float(value - Z * spread), float(value + Z * spread)
