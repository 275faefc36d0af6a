"""Calibration against closed forms: predictors whose NLL, ECE and accuracy are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.cdm import calibration
from jaxunlearn.diffusion import Diffusion

PROCESS = Diffusion()


def two(p):
  """log w [N, 2] of who gives the first source the probability p."""
  return np.log(np.stack([p, 1 - p], axis=1))


def test_a_calibrated_predictor():
  rng = np.random.default_rng(0)
  p = rng.uniform(0.001, 0.999, 200_000)
  source = (rng.uniform(size=len(p)) > p).astype(int)
  got = calibration.scores(two(p), source)
  assert got["ece"] < 0.01
  assert got["accuracy"] == pytest.approx(0.75, abs=0.005)  # E max(p, 1 - p)
  assert got["nll"] == pytest.approx(0.5, abs=0.01)  # E H(p), p uniform


@pytest.mark.parametrize(("says", "right"), [(0.9, 0.6), (0.99, 0.5), (0.7, 0.95)])
def test_one_who_is_too_sure_or_not_enough(says, right):
  source = (np.arange(1000) >= 1000 * right).astype(int)
  got = calibration.scores(two(np.full(1000, says)), source)
  wanted = {
    "nll": -right * np.log(says) - (1 - right) * np.log(1 - says),
    "ece": abs(says - right),
    "accuracy": right,
  }
  assert got == pytest.approx(wanted, abs=1e-12)


def test_bins_are_weighed_by_what_is_in_them():
  p = np.array([0.6, 0.65, 0.8, 0.98, 1 - 1e-12])  # confidences of the bins 8, 9, 11, 14, 14
  source = np.array([0, 1, 1, 0, 1])
  gaps = abs(1 - 0.6), abs(0 - 0.65), abs(0 - 0.8), abs(1 + 0 - 0.98 - 1)
  assert calibration.scores(two(p), source)["ece"] == pytest.approx(sum(gaps) / 5)
  one = calibration.scores(two(p), source, bins=1)
  assert one["ece"] == pytest.approx(abs(2 - p.sum()) / 5)


def test_the_entropy_of_the_prior_is_the_nll_of_knowing_it():
  source = np.repeat([0, 1, 2], (10, 30, 60))
  entropy = calibration.prior_entropy(source)
  log_w = np.tile(np.log([0.1, 0.3, 0.6]), (100, 1))
  assert calibration.scores(log_w, source)["nll"] == pytest.approx(entropy)
  assert calibration.prior_entropy(np.zeros(5, int)) == 0


def gaussian(scale, x_t, t):
  """The exact posterior of two constant pictures, +-scale / 10, of equal priors."""
  gamma, sigma = PROCESS.gamma(t), PROCESS.sigma(t)
  logit = jnp.sum(2 * gamma * scale / 10 * x_t / sigma**2, axis=(1, 2, 3))
  return jnp.stack([jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)], axis=1)


def pictures(n):
  source = np.arange(n) % 2
  sign = np.where(source, -0.1, 0.1).astype(np.float32)
  return np.broadcast_to(sign[:, None, None, None], (n, 4, 4, 1)), source


def test_an_exact_router_by_the_level_of_noise():
  images, source = pictures(3000)
  weigh = jax.tree_util.Partial(gaussian, jnp.float32(1))
  table = calibration.calibrate(weigh, PROCESS, images, source, jax.random.key(0), levels=5)
  assert [row["t"][0] // 200 for row in table] == [row["t"][1] // 200 for row in table]
  assert [row["t"][0] // 200 for row in table] == [0, 1, 2, 3, 4]
  for row in table:
    assert row["records"] == 3000 and row["prior_entropy"] == pytest.approx(np.log(2))
    assert row["ece"] < 0.05 and row["nll"] <= row["prior_entropy"] + 0.01
  nll = [row["nll"] for row in table]
  assert nll == sorted(nll) and nll[0] < 0.4 and nll[-1] > 0.69
  sure = jax.tree_util.Partial(gaussian, jnp.float32(4))
  worse = calibration.calibrate(sure, PROCESS, images, source, jax.random.key(0), levels=5)
  assert worse[0]["ece"] > table[0]["ece"] + 0.05 and worse[1]["nll"] > table[1]["nll"] + 0.05
  assert [row["accuracy"] for row in worse] == [row["accuracy"] for row in table]


def test_every_picture_is_seen_once_a_level_at_spread_times():
  images, source = pictures(20)
  seen = []

  def weigh(x_t, t):
    jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
    return jnp.zeros((len(t), 2)) - jnp.log(2)

  fn = jax.tree_util.Partial(weigh)
  calibration.calibrate(fn, PROCESS, images, source, jax.random.key(1), levels=10)
  jax.effects_barrier()
  t = np.concatenate(seen)
  np.testing.assert_array_equal(np.sort(t) // 5, np.arange(200))  # one time in each 200-th
  assert (np.diff(t[:20]) < 0).any()  # in no order of the pictures


def test_calibration_follows_from_its_key():
  images, source = pictures(300)
  weigh = jax.tree_util.Partial(gaussian, jnp.float32(1))
  table = lambda seed: calibration.calibrate(
    weigh, PROCESS, images, source, jax.random.key(seed), levels=2
  )
  assert table(0) == table(0) != table(1)


def test_markdown():
  row = {"t": (0, 99), "records": 40, "nll": 0.12345, "ece": 0.01, "accuracy": 0.975}
  text = calibration.markdown([{**row, "prior_entropy": np.log(2)}])
  assert text.splitlines()[2] == "| 0 to 99 | 0.123 | 0.693 | 0.010 | 0.975 | 40 |"
  assert len({line.count("|") for line in text.splitlines()}) == 1


@pytest.mark.parametrize(
  ("n", "sources", "levels", "message"),
  [
    (4, 4, 0, "levels 0 is outside 1..1000, the times of the process"),
    (4, 4, 1001, "levels 1001 is outside 1..1000"),
    (0, 0, 2, "0 images and 0 sources of them; give one of each"),
  ],
)
def test_bad_input(n, sources, levels, message):
  images, source = pictures(n)
  weigh = jax.tree_util.Partial(gaussian, jnp.float32(1))
  with pytest.raises(ValueError, match=message):
    calibration.calibrate(weigh, PROCESS, images, source[:sources], jax.random.key(0), levels)


def test_a_source_that_has_no_weight():
  with pytest.raises(ValueError, match=r"sources 0..2 of images weighed over 2; use 0..1"):
    calibration.scores(two(np.full(3, 0.5)), np.arange(3))
