"""Membership attacks: closed forms, equality with float64 PyTorch forms, and what a run reports."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxunlearn
from jaxunlearn import data, evals
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import attacks, membership, roc
from jaxunlearn.evals.attacks import pfami
from tests import toys

PROCESS = Diffusion()
SHAPE = (8, 8, 1)
KEY = jax.random.key(0)
MEAN, STD = 0.3, 0.5
each_attack = pytest.mark.parametrize("name", attacks.names())


def drawn(n, seed, shape=SHAPE):
  return jnp.asarray(np.random.default_rng(seed).normal(MEAN, STD, (n, *shape)), jnp.float32)


@functools.cache
def compiled():
  return jax.jit(lambda eps_fn, x, t, c: eps_fn(x, t, c))


def score(name, eps_fn, x, process=PROCESS, **fields):
  predict = lambda x, t, c=None: compiled()(eps_fn, x, t, c)
  return np.asarray(attacks.make(name, **fields).score(predict, process, x, None, KEY))


def population(shape=SHAPE):
  """The exact predictor of what `drawn` draws from."""
  return toys.mixture_eps_fn(PROCESS, jnp.full((1, *shape), MEAN), STD, np.ones(1))


# Closed forms.


def test_the_expected_loss_of_a_gaussian():
  """Of x under N(m, s^2 I), v = gamma^2 s^2 + sigma^2 and D pixels:

  E ||eps - e||^2 = D (1 - sigma^2/v)^2 + (sigma gamma / v)^2 ||x - m||^2
  """
  x = np.array([1.0, -0.4, 0.3, 2.0]).reshape(1, 2, 2, 1)
  found = score("loss", population((2, 2, 1)), jnp.tile(x, (5_000, 1, 1, 1)), times=(150,))
  gamma, sigma = np.sqrt(PROCESS.abar[150]), np.sqrt(1 - PROCESS.abar[150])
  v = (gamma * STD) ** 2 + sigma**2
  want = 4 * (1 - sigma**2 / v) ** 2 + (sigma * gamma / v) ** 2 * np.sum((x - MEAN) ** 2)
  assert found.mean() == pytest.approx(want, rel=5 * (found.std() / want) / np.sqrt(len(found)))


@each_attack
def test_a_model_that_memorised_is_told_and_the_true_density_is_not(name):
  members, others = drawn(40, 1), drawn(40, 2)
  memorised = toys.mixture_eps_fn(PROCESS, members, 0.05, np.full(40, 1 / 40))
  assert roc.auc(score(name, memorised, members), score(name, memorised, others)) > 0.97
  fair = roc.auc(score(name, population(), members), score(name, population(), others))
  assert abs(fair - 0.5) < 3 * np.sqrt(81 / (12 * 40 * 40))  # the sd of Mann and Whitney


# The same scores in float64, from the formulas.


class Torch:
  """The formulas in PyTorch, for the predictor of N(m, s^2 I) and draws of JAX."""

  def __init__(self, x):
    self.x = torch.tensor(np.asarray(x), dtype=torch.float64)

  def levels(self, t):
    return PROCESS.abar[t] ** 0.5, (1 - PROCESS.abar[t]) ** 0.5

  def e(self, x, t):
    gamma, sigma = self.levels(t)
    return sigma / ((gamma * STD) ** 2 + sigma**2) * (x - gamma * MEAN)

  def at(self, x, t, eps):
    gamma, sigma = self.levels(t)
    return gamma * x + sigma * eps

  def noise(self, key):
    return torch.tensor(np.asarray(jax.random.normal(key, self.x.shape)), dtype=torch.float64)

  def mean(self, times, of):
    scores = [of(t, jax.random.fold_in(KEY, i)) for i, t in enumerate(times)]
    return torch.stack(scores).mean(0)

  def loss(self):
    def of(t, key):
      eps = self.noise(key)
      return (eps - self.e(self.at(self.x, t, eps), t)).square().sum((1, 2, 3))

    return self.mean(range(10, 201, 10), of)

  def pia(self, normal=False):
    e_0 = self.e(self.x, 0)
    if normal:
      e_0 = e_0 / e_0.abs().flatten(1).mean(1)[:, None, None, None] * (2 / torch.pi) ** 0.5
    of = lambda t, _: (e_0 - self.e(self.at(self.x, t, e_0), t)).pow(4).sum((1, 2, 3))
    return self.mean((20, 40, 60, 80, 100), of)

  def pian(self):
    return self.pia(normal=True)

  def sima(self):
    return self.mean(range(0, 201, 10), lambda t, _: self.e(self.x, t).pow(4).sum((1, 2, 3)))

  def secmi(self):
    def step(x, s, t):
      (gamma, sigma), eps = self.levels(s), self.e(x, s)
      return self.at((x - sigma * eps) / gamma, t, eps)

    x = self.x
    for s in range(0, 90, 10):
      x = step(x, s, s + 10)
    return (x - step(step(x, 90, 100), 100, 90)).square().sum((1, 2, 3))

  def pfami(self):
    def loss(x, key):
      total = 0
      for i, t in enumerate(range(0, 451, 50)):
        eps = self.noise(jax.random.fold_in(key, i))
        total = total + (eps - self.e(self.at(x, t, eps), t)).square().mean((1, 2, 3))
      return total / 10

    first, *keys = jax.random.split(KEY, 11)
    near = [
      loss(crop(self.x, side), key)
      for side, key in zip(np.linspace(0.95, 0.7, 10), keys, strict=True)
    ]
    return loss(self.x, first) - torch.stack(near).mean(0)


def crop(x, side):
  n = x.shape[1]
  m = int(side * n)
  i = (n - m) // 2
  planes = x[:, i : i + m, i : i + m].permute(0, 3, 1, 2)
  again = torch.nn.functional.interpolate(planes, (n, n), mode="bilinear", align_corners=False)
  return again.permute(0, 2, 3, 1)


@each_attack
def test_a_score_is_that_of_the_formula(name):
  x = drawn(5, 3)
  want = getattr(Torch(x), name)().numpy()
  np.testing.assert_allclose(score(name, population(), x), want, rtol=2e-4, atol=2e-6)


def test_a_crop_is_the_middle_resized():
  x = drawn(2, 4, (28, 28, 3))
  for side in (0.95, 0.7, 0.5):
    want = crop(torch.tensor(np.asarray(x)), side)
    np.testing.assert_allclose(pfami.cropped(x, side), want, atol=2e-6)


@each_attack
def test_times_scale_with_the_process_and_a_short_one_is_refused(name):
  x = drawn(3, 5)
  eps_fn = population()
  assert np.isfinite(score(name, eps_fn, x, Diffusion(T=100))).all()
  with pytest.raises(ValueError, match=r"^T 50 is too short .* use process.T of 100 or more"):
    score(name, eps_fn, x, Diffusion(T=50))
  assert attacks.scaled(50, Diffusion(T=200)) == 10


@pytest.mark.parametrize(
  ("name", "fields", "says"),
  [
    ("pja", {}, "no membership attack 'pja' (did you mean 'pia'?); there are: loss, pfami"),
    ("pia", {"time": 3}, "membership attack pia has no field 'time' (did you mean 'times'?)"),
    ("loss", {"times": (10, 1000)}, "times is (10, 1000); use whole numbers, 0 to 999"),
    ("secmi", {"k": 200}, "k 200 and t_sec 100: use a k of 1 or more, under t_sec"),
  ],
)
def test_what_is_refused(name, fields, says):
  with pytest.raises(ValueError) as error:
    attacks.make(name, **fields)
  assert str(error.value).startswith(says)


# What a score tells.


def test_auc_counts_pairs():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 9, 40), rng.integers(2, 12, 31)  # with ties
  pairs = np.sign(b[None] - a[:, None])
  assert roc.auc(a, b) == pytest.approx(np.mean((pairs + 1) / 2))
  assert roc.auc(b, a) == pytest.approx(1 - roc.auc(a, b))


def test_asr_is_the_best_threshold_on_either_side_told_by_the_other_half():
  rng = np.random.default_rng(1)
  a, b = rng.normal(0, 1, 400), rng.normal(1, 1, 500)
  gains = [np.mean(a <= t) - np.mean(b <= t) for t in np.concatenate([a, b])]
  sign, threshold = roc.best(a, b)
  assert sign == 1 and np.mean(a <= threshold) - np.mean(b <= threshold) == max(gains)
  told = roc.asr(a, rng.normal(0, 1, 40_000), b, rng.normal(1, 1, 40_000))
  assert told == pytest.approx(0.6915, abs=0.02)  # Phi(1/2)
  mirrored = roc.asr(-a, rng.normal(0, 1, 40_000), -b, rng.normal(-1, 1, 40_000))
  assert roc.best(-a, -b)[0] == -1 and mirrored == pytest.approx(0.6915, abs=0.02)


def test_asr_of_nothing_is_a_guess_and_not_more():
  """On the half that chose it is over .5 by construction."""
  rng = np.random.default_rng(2)
  found = [roc.asr(*rng.normal(size=(4, 50))) for _ in range(300)]
  assert abs(np.mean(found) - 0.5) < 4 * np.std(found) / np.sqrt(300)


def test_p_values_are_uniform_for_records_that_were_not_trained_on():
  rng = np.random.default_rng(3)
  p = np.array([roc.p_values(rng.normal(size=1), rng.normal(size=19))[0] for _ in range(4000)])
  share, spread = np.bincount(np.rint(p * 20).astype(int))[1:] / 4000, np.sqrt(0.05 * 0.95 / 4000)
  assert len(share) == 20 and abs(share - 0.05).max() < 4.5 * spread


def test_p_values_are_the_formula_with_ties():
  others = np.array([1.0, 2.0, 2.0, 5.0])
  assert roc.p_values(np.array([0.5, 2.0, 9.0]), others).tolist() == [1 / 5, 4 / 5, 1]
  assert roc.smallest_p(4) == 1 / 5
  with_999 = roc.p_values(np.array([-1.0]), np.arange(999.0))
  assert with_999[0] == 0.001 == roc.smallest_p(999)


def test_tpr_keeps_the_fpr_it_is_asked_for():
  rng = np.random.default_rng(4)
  found = [roc.tpr(rng.normal(size=50), rng.normal(size=199), 0.05) for _ in range(300)]
  assert np.mean(found) == pytest.approx(0.05, abs=0.01)
  assert roc.tpr(rng.normal(-9, 1, 50), rng.normal(size=199), 0.05) == 1
  assert roc.tpr(rng.normal(-9, 1, 50), rng.normal(size=9), 0.05) == 0  # too few to say


# The metrics.

OPTIONS = evals.Options(membership_attacks=("pia",))


def records(n, seed, name):
  rng = np.random.default_rng(seed)
  image = np.clip(rng.normal(128, 50, (n, *SHAPE)), 0, 255).astype(np.uint8)
  return data.Records(np.array([f"{name}/{i}" for i in range(n)]), image, np.zeros(n, int), ("x",))


def mixture(*parts):
  means = np.concatenate([data.to_model(part.image) for part in parts])
  return toys.mixture_eps_fn(PROCESS, means, 0.05, np.full(len(means), 1 / len(means)))


@functools.cache
def parts(deleted=30):
  heldout = records(150, 12, "h")
  return evals.Split(records(40, 10, "k"), records(deleted, 11, "d"), heldout, heldout)


def task(split, **changes):
  base = evals.Task(
    process=PROCESS,
    target=np.empty((0, *SHAPE), np.float32),
    reference=split.like_kept,
    classes=("x",),
    samples=np.empty((0, *SHAPE), np.float32),
    identity="guidance=none weights=raw seed=0",
    options=OPTIONS,
    rng=KEY,
    split=split,
  )
  return dataclasses.replace(base, **changes)


def test_a_run_tells_kept_and_deleted_apart_from_held_out():
  split = parts()
  original = membership.evaluate(mixture(split.kept, split.deleted), task(split))
  retrained = membership.evaluate(mixture(split.kept), task(split))
  for name in OPTIONS.membership_attacks:
    group = f"membership_{name}"
    assert original[f"{group}/kept-auc"].value > 0.97
    assert original[f"{group}/deleted-auc"].value > 0.97
    assert original[f"{group}/deleted-tpr-1"].value > 0.8
    assert original[f"{group}/deleted-asr"].value > 0.9
    assert retrained[f"{group}/kept-auc"].value > 0.97
    low, high = retrained[f"{group}/deleted-auc"].ci95
    assert low < 0.5 < high
  assert not any("tpr-01" in name for name in original)  # 150 held-out records are too few
  assert all(0 <= v.ci95[0] <= v.value <= v.ci95[1] <= 1 for v in original.values())


def test_one_record_has_a_p_value_and_no_rate():
  split = parts(deleted=1)
  known = membership.evaluate(mixture(split.kept, split.deleted), task(split))
  p = known["membership_pia/deleted-p"]
  assert p.value == pytest.approx(1 / 151) and p.ci95 is None
  assert known["membership_pia/deleted-p-high"].value == 1
  assert "members=1 heldout=150 smallest_p=0.0066" in p.identity
  assert "times=20..100/5" in p.identity
  assert not any("deleted-auc" in name for name in known)
  unknown = membership.evaluate(mixture(split.kept), task(split))
  assert unknown["membership_pia/deleted-p"].value > 0.05


def test_a_deletion_that_went_too_far_shows_at_the_other_end():
  """The score of a deleted record is pushed above that of every held-out one."""
  split = parts(deleted=1)
  away = mixture(records(1, 99, "z"))
  far = dataclasses.replace(split.deleted, image=np.full_like(split.deleted.image, 255))
  odd = split._replace(deleted=far)
  values = membership.evaluate(away, task(odd))
  assert values["membership_pia/deleted-p-high"].value == pytest.approx(1 / 151)
  assert values["membership_pia/deleted-p"].value == 1


def test_several_records_pay_for_their_number_and_copies_count_once():
  split = parts(deleted=3)
  values = membership.evaluate(mixture(split.kept, split.deleted), task(split))
  assert values["membership_pia/deleted-p"].value == pytest.approx(3 / 151)
  image = split.deleted.image
  copies = dataclasses.replace(split.deleted, image=np.repeat(image[:1], 3, axis=0))
  values = membership.evaluate(mixture(split.kept, copies), task(split._replace(deleted=copies)))
  assert values["membership_pia/deleted-p"].value == pytest.approx(1 / 151)


def test_of_each_part_so_many_records_as_the_options_say():
  options = dataclasses.replace(OPTIONS, membership_kept=25, membership_heldout=120)
  values = membership.evaluate(mixture(parts().kept), task(parts(), options=options))
  assert "members=25 heldout=120" in values["membership_pia/kept-auc"].identity
  assert "members=30 heldout=120" in values["membership_pia/deleted-auc"].identity


def test_both_models_betray_what_was_deleted_and_little_of_what_was_kept():
  split = parts()
  before = lambda: mixture(split.kept, split.deleted)
  change = evals.metric("membership_change")
  values = change(mixture(split.kept), task(split, before=before))
  assert values["membership_change_pia/deleted-auc"].value > 0.97
  low, high = values["membership_change_pia/kept-auc"].ci95
  assert high - low < 0.4 and values["membership_change_pia/kept-auc"].value < 0.9
  assert change(mixture(split.kept), task(split)) == {}
  assert "models=2" in values["membership_change_pia/deleted-auc"].identity


def test_the_library_measures_it_where_it_is_given_the_records():
  split = parts(deleted=1)
  models = {"before": mixture(split.kept, split.deleted), "eps_fn": mixture(split.kept)}
  given = {"process": PROCESS, "reference": split.like_kept, "samples": 1, "steps": 1}
  chosen = {"membership_attacks": ("pia",), "membership_kept": 20}
  names = ["membership", "membership_change"]
  values = jaxunlearn.measure(names, **models, **given, split=split, **chosen)
  assert values["membership_pia/deleted-p"].value > 0.05
  assert values["membership_change_pia/deleted-p"].value == pytest.approx(1 / 151)
  assert jaxunlearn.measure(names, models["eps_fn"], **given) == {}


def test_a_wrong_attack_is_refused_before_any_work():
  options = dataclasses.replace(OPTIONS, membership_attacks=("pai",))
  for name in ("membership", "membership_change"):
    with pytest.raises(ValueError, match=r"^no membership attack 'pai'"):
      evals.check(name, options)
