"""Each classifier: what its file says of it, the images it takes, its metrics, its training."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from configs import common
from jaxunlearn import data, evals
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import classifiers
from jaxunlearn.models.classifier import Classifier

NAMES = [name for name, one in classifiers.RECIPES.items() if one.weights.is_file()]
METRICS = ("inception_score", "feature_fid", "class_quality")
EMOJI_KEYS = (
  *("activities", "animals-nature", "flags", "food-drink", "objects"),
  *("people-body", "smileys-emotion", "symbols", "travel-places"),
)
ACCURACY = {
  "digits": (0.985, 0.985),
  "fashion": (0.88, 0.88),
  "digits_clothes": (0.92, 0.92),
  "emoji_groups": (0.85, 0.82),
  "emoji_styles": (0.84, 0.84),
  "emoji": (0.6, 0.5),
  "little_styles": (0.96, 0.96),
  "decoded_noto_twemoji": (0.94, 0.94),
  "decoded_objects": (0.93, 0.94),
  "decoded_styles": (0.96, 0.96),
}  # at least: of all, mean over classes


@functools.cache
def heldout(name):
  return classifiers.RECIPES[name].records()[1]


def pictures(name, n):
  return data.to_model(heldout(name).image[:n])


def evaluate(metric, name, samples):
  """The metric of some samples, with 100 held-out pictures as the reference."""
  options = common.get_config().eval
  options.update(classifier=name, target_name="first")
  task = evals.Task(
    process=Diffusion(),
    target=samples[:0],
    reference=heldout(name).take(np.arange(100)),
    classes=heldout(name).classes,
    samples=samples,
    identity="n=64",
    options=options,
    rng=jax.random.key(0),
  )
  return evals.metric(metric)(lambda x_t, t, c: x_t, task)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_on_heldout_pictures_is_what_the_file_says(name):
  trained = classifiers.load(name)
  score, of_classes = classifiers.recalls(trained, heldout(name))
  assert score >= ACCURACY[name][0]
  assert of_classes.mean() >= ACCURACY[name][1]
  assert trained.facts["accuracy"] == f"{score:.4f}"
  assert trained.facts["heldout"] == str(len(heldout(name)))
  assert {"seed", "epochs"} <= set(trained.facts)


@pytest.mark.parametrize("name", [name for name in NAMES if classifiers.RECIPES[name].decoder])
def test_what_an_autoencoder_gives_back_is_recognised_as_well_as_the_picture(name):
  """All styles and kinds can be shown: a model's failure to is its own, and not the decoder's."""
  trained = classifiers.load(name)
  score, of_classes = classifiers.recalls(trained, trained.recipe.decoded(heldout(name)))
  assert trained.facts["decoded_accuracy"] == f"{score:.4f}"
  assert score > float(trained.facts["accuracy"]) - 0.03
  assert of_classes.min() > 0.6


def test_the_emoji_file_says_its_classes_and_their_mean_accuracy():
  trained = classifiers.load("emoji")
  mean = classifiers.recalls(trained, heldout("emoji"))[1].mean()
  assert trained.facts["class_accuracy"] == f"{mean:.4f}"
  assert json.loads(trained.facts["classes"]) == list(trained.recipe.classes)


def test_the_digit_file_is_that_of_the_committed_results():
  assert classifiers.load("digits").identity == "digit_classifier:0571d996b6b1"


@pytest.mark.parametrize(("name", "most"), [("digits", 1.2e6), ("emoji", 1.5e6)])
def test_weights_are_small(name, most):
  path = classifiers.RECIPES[name].weights
  assert path.stat().st_size < most
  with safetensors.safe_open(path, "numpy") as file:
    assert sum(file.get_tensor(key).size for key in file.keys()) < most / 4  # noqa: SIM118


@pytest.mark.parametrize("name", NAMES)
def test_records_have_every_class_and_keep_its_name(name):
  recipe = classifiers.RECIPES[name]
  source = data.load(recipe.source, **recipe.fields)
  for mine, given in zip(recipe.records(), source, strict=True):
    assert set(mine.label) == set(range(len(recipe.classes)))
    values = given.style if recipe.by == "style" else given.label
    names = given.styles if recipe.by == "style" else given.classes
    assert [mine.classes[i] for i in mine.label] == [names[i] for i in values]


@pytest.mark.parametrize("name", NAMES)
def test_takes_any_number_of_images(name):
  trained, image = classifiers.load(name), pictures(name, 64)
  p, features = trained.probabilities(image), trained.features(image)
  assert p.shape == (64, len(trained.recipe.classes))
  assert features.shape == (64, 64)
  np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
  many = np.tile(image, (5, 1, 1, 1))
  np.testing.assert_allclose(trained.probabilities(many)[256:], p, atol=1e-6)
  np.testing.assert_allclose(trained.features(image[:1]), features[:1], atol=1e-5)
  assert trained.probabilities(image[:0]).shape == (0, len(trained.recipe.classes))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", NAMES)
def test_each_metric_uses_the_named_classifier(metric, name):
  values = evaluate(metric, name, pictures(name, 64))
  identity = classifiers.load(name).identity
  assert all(f"extractor={identity} " in value.identity for value in values.values())
  assert all(np.isfinite(value.value) for value in values.values())


@pytest.mark.parametrize(
  ("name", "keys"),
  [
    ("digits", "0123456789"),
    ("emoji", EMOJI_KEYS),
  ],
)
def test_quality_is_named_by_class(name, keys):
  values = evaluate("class_quality", name, pictures(name, 64))
  shares = {f"class_share/{key}" for key in keys}
  confidences = {f"class_confidence/{key}" for key in keys}
  assert set(values) == shares | confidences | {"worst_class_share"}


@pytest.mark.parametrize(
  ("name", "shape", "says"),
  [
    ("digits", (3, 32, 32, 3), "digits takes 28x28x1 images and these are 32x32x3; .*emoji 32x32"),
    ("emoji", (0, 28, 28, 1), "emoji takes 32x32x3 images and these are 28x28x1; .*digits 28x28"),
    ("emoji", (3, 32, 32, 1), "emoji takes 32x32x3 images and these are 32x32x1"),
  ],
)
def test_images_of_another_size_are_refused(name, shape, says):
  for judge in (classifiers.load(name).probabilities, classifiers.load(name).features):
    with pytest.raises(ValueError, match=says):
      judge(np.zeros(shape, np.float32))


@pytest.mark.parametrize("metric", METRICS)
def test_a_wrong_name_is_refused_before_any_work(metric):
  options = common.get_config().eval
  evals.check(metric, options)
  options.classifier = "emojis"
  with pytest.raises(ValueError, match=r"no classifier 'emojis' \(did you mean 'emoji'\?\)"):
    evals.check(metric, options)


@pytest.mark.parametrize("background", [-1.0, 1.0])
def test_shifts_move_the_image_and_bring_in_background(background):
  image = np.full((64, 8, 8, 1), background, np.float32)
  image[:, 4, 4] = -background
  moved = np.asarray(classifiers.shifted(jnp.asarray(image), 2, background, jax.random.key(0)))
  places = np.argwhere(moved[..., 0] == -background)
  assert len(places) == 64
  assert set(places[:, 1]) == set(places[:, 2]) == {2, 3, 4, 5, 6}
  assert np.sum(moved == background) == 64 * 63


def test_flips_mirror_some_images_left_for_right():
  image = np.arange(64 * 2 * 3 * 1, dtype=np.float32).reshape(64, 2, 3, 1)
  turned = np.asarray(classifiers.flipped(jnp.asarray(image), jax.random.key(0)))
  mirrored = [np.array_equal(new, old[:, ::-1]) for new, old in zip(turned, image, strict=True)]
  same = [np.array_equal(new, old) for new, old in zip(turned, image, strict=True)]
  assert 16 < sum(mirrored) < 48
  assert sum(mirrored) + sum(same) == 64


def test_training_learns_a_class_that_a_colour_tells():
  """Two classes, dark and bright: a few steps tell them apart."""
  bright = np.arange(1024) % 2
  image = np.broadcast_to((bright * 255).astype(np.uint8)[:, None, None, None], (1024, 8, 8, 1))
  records = data.Records(np.arange(1024).astype(str), image, bright, ("dark", "bright"))
  net = classifiers.Classifier(classes=2, widths=(4, 4), features=8, dropout=0.1)
  recipe = dataclasses.replace(
    classifiers.RECIPES["emoji"], shape=(8, 8, 1), classes=records.classes, net=net, epochs=5
  )
  params = classifiers.train(recipe, records, seed=0)
  score, of_classes = classifiers.recalls(classifiers.Trained(recipe, params, "", {}), records)
  assert score == of_classes.mean() == 1


def test_a_classifier_that_was_not_made_says_how_to_make_it(monkeypatch, tmp_path):
  recipe = dataclasses.replace(classifiers.RECIPES["digits"], weights=tmp_path / "unmade")
  monkeypatch.setitem(classifiers.RECIPES, "unmade", recipe)
  with pytest.raises(ValueError, match=r"unmade has no weights in .*evals\.classifiers --set=unm"):
    classifiers.load("unmade")


def test_large_pictures_are_averaged_first():
  small, large = Classifier(widths=(4, 8)), Classifier(widths=(4, 8), shrink=2)
  images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
  halved = images.reshape(2, 8, 2, 8, 2, 3).mean(axis=(2, 4))
  params = small.init(jax.random.key(0), halved)
  np.testing.assert_allclose(large.apply(params, images)[0], small.apply(params, halved)[0], 1e-5)
