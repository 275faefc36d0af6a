"""The contract that every metric keeps, then each metric against a value known in closed form."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs import common
from jaxunlearn import data, evals
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import (
  classifiers,
  copy_score,
  inception_score,
  statistics,
  typical,
)
from tests import random_clip, random_inception, random_resnet, toys

PROCESS = Diffusion()
METRICS = evals.names()
KINDS = ("unconditional", "conditional")  # of the model: single records to forget, or a class
SILENT = {
  "unconditional": (
    *("unlearning_accuracy", "kept_accuracy", "completion", "alignment"),
    *("text_noise", "one_step", "clip_score"),
  ),
  "conditional": ("target_rate", "copy_score", "sscd", "nll", "memorised"),
}
ORDERED = ("inception_score",)  # its splits follow the order of the samples, as in the paper
OF_KEPT = ("stationarity",)  # what is to be forgotten is nothing to it
SEVEN = data.Concept(0, 7)
each_metric = pytest.mark.parametrize(
  ("kind", "name"), [(kind, name) for kind in KINDS for name in METRICS]
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def small_inception(monkeypatch, cache):
  """FID's contract without its network, which fid_test.py and inception_test.py run."""
  random_inception.stand_in(monkeypatch, cache)


def bind(mean, variance):
  """The exact noise predictor of N(mean, variance I)."""
  return toys.mixture_eps_fn(PROCESS, mean[None], np.sqrt(variance), np.ones(1))


@functools.cache
def records():
  return data.load("mnist_tshirt")


@functools.cache
def base_task(kind="unconditional"):
  """60 held-out digits and 4 T-shirts as samples, 200 other digits as the reference.

  Conditional: 64 held-out digits under their own classes, of which 7 is to be forgotten.
  """
  if kind == "conditional":
    return conditional_task()
  train, heldout = records()
  options = common.get_config().eval
  options.update(inject_t=10, inject_n=3, nll_probes=2, nll_tolerance=1e-2)
  options.sscd_weights = str(random_resnet.weights())
  options.inception_weights = str(random_inception.STAND_IN)
  options.clip_iqa_weights = str(random_clip.resnet_weights())
  options.clip_weights = str(random_clip.folder())
  options.update(prompt_noises=2, prompt_steps=2)
  options.update(membership_attacks=("pia",), membership_kept=24, membership_heldout=24)
  shirt = data.to_model(train.image[-1:])
  digit = data.to_model(heldout.image)
  return evals.Task(
    process=PROCESS,
    target=shirt,
    reference=heldout.take(np.arange(100, 300)),
    classes=train.classes,
    samples=np.concatenate([digit[:60], np.repeat(shirt, 4, axis=0)]),
    identity=evals.identity(sampler="ddim", steps=25, n=64, guidance="none", weights="ema", seed=0),
    options=options,
    rng=jax.random.key(0),
    split=evals.Split(train.take(np.arange(30)), train.take(np.arange(-3, 0)), heldout, heldout),
    before=lambda: bind(shirt[0], 0.2),
  )


def conditional_task():
  _, heldout = records()
  few = np.arange(64)
  return dataclasses.replace(
    base_task(),
    target=base_task().target[:0],
    reference=heldout.take(100 + np.flatnonzero(heldout.label[100:300] != 7)),
    samples=data.to_model(heldout.image[few]),
    c=heldout.label[few],
    concept=SEVEN,
    vocabulary=(heldout.classes,),
    split=evals.Split(*([heldout.take(few)] * 4)),
  )


def task(kind="unconditional", **changes):
  return dataclasses.replace(base_task(kind), **changes)


def some(kind, index):
  """The task on some of its samples."""
  c = base_task(kind).c
  return task(kind, samples=base_task(kind).samples[index], c=c if c is None else c[index])


def evaluate(name, given):
  return evals.metric(name)(bind(data.to_model(given.reference.image[0]), 0.3), given)


@functools.cache
def base_values(name, kind="unconditional"):
  return evaluate(name, base_task(kind))


def check_values(values):
  json.loads(json.dumps({k: v._asdict() for k, v in values.items()}, allow_nan=False))
  for key, (value, ci95, identity) in values.items():
    assert isinstance(value, float), key
    assert identity, key
    assert ci95 is None or ci95[0] <= value <= ci95[1], key


@each_metric
def test_values_are_finite_inside_their_interval_and_json(kind, name):
  assert bool(base_values(name, kind)) == (name not in SILENT[kind])
  check_values(base_values(name, kind))


@each_metric
def test_identity_says_what_was_measured_how(kind, name):
  subject = {"unconditional": "target", "conditional": "concept"}[kind]
  for _, _, identity in base_values(name, kind).values():
    facts = dict(fact.split("=") for fact in identity.split())
    assert {"guidance", "weights", "seed"} <= set(facts)
    assert {"extractor", "solver", "rows", "attack"} & set(facts)
    assert subject in facts or name in OF_KEPT
    if "n" in facts:
      assert {"sampler", "steps"} <= set(facts)
      assert ("radius" in facts) == (kind == "unconditional")


@each_metric
def test_identity_follows_what_is_to_be_forgotten_and_the_weights(kind, name):
  other = {
    "unconditional": {"target": -base_task().target},
    "conditional": {"concept": data.Concept(0, 3)},
  }[kind]
  raw = {"identity": base_task(kind).identity.replace("ema", "raw")}
  for changes in (raw,) if name in OF_KEPT else (raw, other):
    values, base = evaluate(name, task(kind, **changes)), base_values(name, kind)
    assert all(values[k].identity != base[k].identity for k in values.keys() & base.keys())


@each_metric
def test_same_rng_same_values(kind, name):
  assert evaluate(name, base_task(kind)) == base_values(name, kind)


@each_metric
def test_order_of_samples_does_not_matter(kind, name):
  values = evaluate(name, some(kind, np.random.default_rng(0).permutation(64)))
  assert set(values) == set(base_values(name, kind))
  if name not in ORDERED:
    for key, value in values.items():
      assert value.value == pytest.approx(base_values(name, kind)[key].value, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_few_or_no_samples_besides_the_target_still_give_values(name, kept):
  shirts = np.repeat(base_task().target, 5, axis=0)
  values = evaluate(name, task(samples=np.concatenate([shirts, base_task().samples[:kept]])))
  assert set(values) == set(base_values(name))
  check_values(values)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("asked", "kept"), [(0, 1), (0, 3), (1, 0), (3, 0), (1, 1), (3, 3)])
def test_few_or_no_samples_of_a_condition_still_give_values(name, asked, kept):
  forgotten = SEVEN.matches(base_task("conditional").c)
  index = [*np.flatnonzero(forgotten)[:asked], *np.flatnonzero(~forgotten)[:kept]]
  values = evaluate(name, some("conditional", np.array(index, int)))
  kept_alone = dict.fromkeys(("kept_accuracy", "alignment"), not kept)
  none = {"unlearning_accuracy": not asked, **kept_alone}.get(name)
  silent = name in SILENT["conditional"] if none is None else none
  assert set(values) <= set(base_values(name, "conditional"))
  assert bool(values) != silent
  check_values(values)


@each_metric
def test_nothing_to_forget_gives_fewer_values_and_no_failure(kind, name):
  values = evaluate(name, task(kind, target=base_task().target[:0], concept=None))
  check_values(values)
  assert set(values) - {"ira/7"} <= set(base_values(name, kind))


def test_each_metric_has_a_key_of_its_own():
  keys = {tuple(jax.random.key_data(base_task().key(name)).tolist()) for name in METRICS}
  assert len(keys) == len(METRICS)


def test_metrics_do_not_include_helpers_and_a_wrong_name_lists_the_choices():
  assert not set(METRICS) & set(evals.HELPERS)
  with pytest.raises(ValueError, match=r"did you mean 'nll'.*target_rate"):
    evals.metric("nlll")


# target_rate


def test_target_is_within_the_radius_in_pixels_of_0_to_1():
  """A uniform change by d in [-1, 1] of 784 pixels is 14 d in L2 of [0, 1]."""
  shirt = base_task().target[0]
  samples = np.stack([shirt, shirt + 9.99 / 14, shirt - 9.99 / 14, shirt + 10.01 / 14])
  values = evaluate("target_rate", task(samples=samples.astype(np.float32)))
  value, ci95, _ = values["tshirt_rate"]
  assert value == 3 / 4
  assert ci95 == statistics.wilson(3, 4)


def test_no_digit_is_a_target():
  """The paper: no real digit is nearer to the T-shirt than 11.48."""
  _, heldout = records()
  given = task(samples=data.to_model(heldout.image))
  assert not given.is_target.any()
  near = task(samples=given.samples, options=common.get_config().eval)
  near.options.target_radius = 11.4
  assert not near.is_target.any()


# inception_score


def test_inception_score_of_known_probabilities():
  eye = np.tile(np.eye(10), (10, 1))
  assert inception_score.score(eye) == pytest.approx(10)
  assert inception_score.score(np.full((5, 10), 0.1)) == pytest.approx(1)
  assert inception_score.score(np.repeat(np.eye(10)[:1], 5, 0)) == pytest.approx(1)
  half = np.array([[0.5, 0.5], [1.0, 0.0]])
  kl = 0.5 * (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25) + 1.0 * np.log(1 / 0.75))
  assert inception_score.score(half) == pytest.approx(np.exp(kl))


@pytest.mark.parametrize(("n", "splits"), [(0, 1), (1, 1), (3, 1), (7, 3), (20, 10), (512, 10)])
def test_splits_never_hold_under_two_samples(n, splits):
  scores = inception_score.split_scores(np.full((n, 10), 0.1))
  np.testing.assert_allclose(scores, np.ones(splits))


# feature_fid


def test_fid_tells_digits_from_inverted_digits():
  digit = task(samples=base_task().samples[:60])
  same, far = (
    evaluate("feature_fid", t)["feature_fid"] for t in (digit, task(samples=-digit.samples))
  )
  assert far.ci95[0] > same.ci95[1]


# class_quality


def test_a_vanished_digit_is_seen():
  _, heldout = records()
  image = data.to_model(heldout.image[:200])
  found = classifiers.load("digits").probabilities(image).argmax(axis=1)
  values = evaluate("class_quality", task(samples=image[found != 7]))
  assert values["worst_class_share"].value == values["class_share/7"].value == 0
  assert values["class_confidence/7"].value == 0
  shares = [values[f"class_share/{d}"].value for d in range(10)]
  np.testing.assert_allclose(shares, np.bincount(found[found != 7], minlength=10) / sum(found != 7))


def test_targets_count_for_no_class():
  values = base_values("class_quality")
  digit_only = evaluate("class_quality", task(samples=base_task().samples[:60]))
  assert all(v.value == pytest.approx(digit_only[k].value) for k, v in values.items())


# copy_score


@pytest.mark.parametrize("sign", [1, -1])
def test_a_model_of_one_image_restores_that_image(sign):
  """The exact predictor of a point mass at +-target ends there, whatever it starts from."""
  given = base_task()
  value = evals.metric("copy_score")(bind(sign * given.target[0], 0.0), given)["copy_score"]
  assert value.value == pytest.approx(sign, abs=1e-4)


def test_correlation_is_pearsons():
  a, b = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 4, 1)), jnp.float32)
  want = [scipy.stats.pearsonr(p.ravel(), q.ravel())[0] for p, q in zip(a, b, strict=True)]
  np.testing.assert_allclose(copy_score.correlation(a, b), want, rtol=1e-5, atol=1e-6)
  assert copy_score.correlation(a[:1], jnp.ones((1, 4, 4, 1)))[0] == 0


# typical


def test_real_pictures_are_typical_and_blanks_are_not():
  digits = base_task().samples[:60]
  lost, blank = np.full_like(digits, np.nan), np.full_like(digits, -1)
  share = lambda samples: evaluate("typical", task(samples=samples))["typical_share"].value
  assert share(digits) > 0.8 and share(lost) == share(blank) == 0


def test_what_is_typical_of_emoji_falls_with_noise_as_its_docstring_says():
  unseen = classifiers.RECIPES["little_styles"].records()[1]
  images = data.to_model(unseen.image[np.arange(len(unseen))])
  rng = np.random.default_rng(0)
  noisy = lambda std: np.clip(images + rng.normal(0, std, images.shape), -1, 1).astype(np.float32)
  pixels = images.reshape(len(images), -1, 3)[:, rng.permutation(64 * 64)].reshape(images.shape)
  share = lambda those: typical.are("little_styles", those).mean()
  coarse = np.repeat(rng.normal(0, 0.1, (len(images), 32, 32, 3)), 2, axis=1).repeat(2, axis=2)
  found = [share(those) for those in (images, noisy(0.05), noisy(0.1), pixels, images + coarse)]
  np.testing.assert_allclose(found, [0.89, 0.44, 0, 0, 0], atol=0.02)
  assert share(5 * images) == share(np.clip(5 * images, -1, 1))


def test_larger_pictures_are_averaged_to_the_classifiers_size():
  small = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  large = small.repeat(3, axis=1).repeat(3, axis=2)
  np.testing.assert_allclose(classifiers.shrunk(large, (4, 4, 3)), small, atol=1e-6)
  assert classifiers.shrunk(large, (5, 5, 3)) is large


def test_the_nearest_picture_is_by_l2():
  real = np.array([[0.0, 0.0], [3.0, 4.0]])
  found = typical.nearest(np.array([[0.0, 1.0], [3.0, 2.0], [np.nan, 0.0]]), real)
  np.testing.assert_allclose(found[:2], [1, 2], rtol=1e-12)
  assert not found[2] <= 1e9


# prompts


@pytest.mark.parametrize(
  ("names", "template", "prompt"),
  [
    ((("a whale", "a hand"),), "", "a hand"),
    ((("whale", "hand"), ("noto", "ink")), "", "hand noto"),
    ((("whale", "hand"), ("noto", "ink")), "a {class} in {style} style", "a hand in noto style"),
  ],
)
def test_a_sample_is_compared_with_the_prompt_that_it_was_asked_for(names, template, prompt):
  given = task("conditional", vocabulary=names, template=template)
  assert given.prompt(np.array([1, 0][: len(names)])) == prompt


# groups


def test_samples_of_prompts_without_pictures_are_a_group_of_their_own():
  given = task("conditional", concept=None, target=base_task().target)
  few = np.flatnonzero(given.c != 3)
  assert set(given.groups) == {""}
  _, heldout = records()
  other = heldout.take(np.flatnonzero(heldout.label == 3)[:5])
  given = dataclasses.replace(given, split=evals.Split(*([other] * 4)))
  assert set(given.groups) == {"", "_original"}
  np.testing.assert_array_equal(np.flatnonzero(given.groups["_original"]), few)
