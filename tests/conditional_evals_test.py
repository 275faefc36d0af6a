"""UA, AR, IRA and CRA against hand counts; stationarity against NumPy in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from configs import common
from jaxunlearn import data, evals, methods
from jaxunlearn.diffusion import Diffusion, guidance
from jaxunlearn.evals import statistics
from tests import pets

PROCESS = Diffusion()
DOG, INK = data.Concept(0, 1), data.Concept(1, 1)


@pytest.fixture(autouse=True)
def small_classifiers(monkeypatch):
  pets.stand_in(monkeypatch)


def make_task(samples, c, concept=None, styled=False, **changes):
  options = common.get_config().eval
  options.update(classifier="species", style_classifier="looks", target_name="pet")
  train = pets.records(styled)
  task = evals.Task(
    process=PROCESS,
    target=np.zeros((0, *samples.shape[1:]), np.float32),
    reference=train,
    classes=train.classes,
    samples=samples,
    identity=evals.identity(sampler="ddim", n=len(samples), guidance="2", weights="raw", seed=0),
    options=options,
    rng=jax.random.key(0),
    c=None if c is None else np.array(c, np.int32),
    concept=concept,
    vocabulary=train.vocabulary,
  )
  return dataclasses.replace(task, **changes)


def evaluate(name, task):
  return evals.metric(name)(Partial(lambda x_t, t, c: x_t), task)


def shares(values, counts):
  """The values are these (hits, trials), with their Wilson intervals."""
  assert values.keys() == counts.keys()
  for name, (hits, n) in counts.items():
    assert values[name].value == pytest.approx(hits / n), name
    np.testing.assert_allclose(values[name].ci95, statistics.wilson(hits, n), err_msg=name)


# One condition: four dogs are asked for, then three cats and two foxes.
ASKED = [1, 1, 1, 1, 0, 0, 0, 2, 2]
SEEN = ["dog", "cat", "fox", "dog", "cat", "cat", "dog", "fox", "cat"]


def test_one_condition_is_counted_by_hand():
  task = make_task(pets.pictures_of(SEEN), ASKED, DOG)
  shares(evaluate("unlearning_accuracy", task), {"ua": (2, 4), "ar": (2, 4)})
  kept = {"ira": (3, 5), "ira/cat": (2, 3), "ira/fox": (1, 2), "worst_ira": (1, 2)}
  shares(evaluate("kept_accuracy", task), kept)


# Two: (class, style) asked for, and what is seen of each.
ASKED_2 = [[0, 1], [1, 1], [2, 1], [0, 0], [1, 0], [2, 0], [0, 0]]
SEEN_2 = ["cat", "fox", "fox", "cat", "dog", "cat", "dog"]
LOOKS_2 = ["ink", "photo", "photo", "photo", "ink", "photo", "photo"]


def test_a_style_is_counted_by_hand_and_the_classes_across():
  task = make_task(pets.pictures_of(SEEN_2, LOOKS_2), ASKED_2, INK, styled=True)
  shares(evaluate("unlearning_accuracy", task), {"ua": (2, 3), "ar": (1, 3)})
  kept = {"ira": (3, 4), "ira/photo": (3, 4), "worst_ira": (3, 4), "cra": (2, 4)}
  shares(evaluate("kept_accuracy", task), kept)


def test_a_class_is_counted_by_hand_and_the_styles_across():
  task = make_task(pets.pictures_of(SEEN_2, LOOKS_2), ASKED_2, DOG, styled=True)
  shares(evaluate("unlearning_accuracy", task), {"ua": (1, 2), "ar": (1, 2)})
  kept = {"ira": (3, 5), "ira/cat": (2, 3), "ira/fox": (1, 2), "worst_ira": (1, 2)}
  shares(evaluate("kept_accuracy", task), kept | {"cra": (4, 5)})


def test_nothing_to_forget_keeps_every_condition():
  task = make_task(pets.pictures_of(SEEN), ASKED)
  assert evaluate("unlearning_accuracy", task) == {}
  kept = {"ira": (5, 9), "ira/cat": (2, 3), "ira/dog": (2, 4), "ira/fox": (1, 2)}
  shares(evaluate("kept_accuracy", task), kept | {"worst_ira": (2, 4)})


def test_what_was_not_asked_for_has_no_value():
  images = pets.pictures_of(SEEN)
  assert evaluate("unlearning_accuracy", make_task(images[4:], ASKED[4:], DOG)) == {}
  assert evaluate("kept_accuracy", make_task(images[:4], ASKED[:4], DOG)) == {}
  for name in ("unlearning_accuracy", "kept_accuracy"):
    assert evaluate(name, make_task(images, None)) == {}


def test_identities_say_the_concept_the_samples_and_the_classifier():
  task = make_task(pets.pictures_of(SEEN), ASKED, DOG)
  ua = evaluate("unlearning_accuracy", task)["ua"].identity
  assert ua == f"asked=4 extractor=species:0 concept=dog {task.identity}"
  kept = evaluate("kept_accuracy", task)
  assert kept["ira/fox"].identity == f"kept=2 extractor=species:0 concept=dog {task.identity}"
  two = make_task(pets.pictures_of(SEEN_2, LOOKS_2), ASKED_2, INK, styled=True)
  assert "extractor=looks:0 concept=ink" in evaluate("kept_accuracy", two)["ira"].identity
  assert "extractor=species:0 concept=ink" in evaluate("kept_accuracy", two)["cra"].identity


def test_single_records_to_forget_are_no_kept_samples_of_a_conditional_model():
  images = pets.pictures_of(SEEN)
  task = make_task(images + np.arange(9)[:, None, None, None], ASKED, target=images[6:7] + 6)
  task.options.target_radius = 0.1
  assert np.flatnonzero(~task.is_kept).tolist() == [6]
  task = make_task(images, ASKED, target=images[6:7])
  task.options.target_radius = 1e-6
  kept = {"ira": (3, 6), "ira/cat": (2, 2), "ira/dog": (0, 2), "ira/fox": (1, 2)}
  shares(evaluate("kept_accuracy", task), kept | {"worst_ira": (0, 2)})
  (rate,) = evaluate("target_rate", task).values()
  assert rate.value == pytest.approx(3 / 9)
  assert {"target=pet", "radius=1e-06"} <= {part.split(":")[0] for part in rate.identity.split()}


def test_a_class_that_the_classifier_does_not_know():
  task = make_task(pets.pictures_of(SEEN), ASKED, DOG, vocabulary=(("cow", "dogs", "fox"),))
  with pytest.raises(ValueError, match=r"no class of the classifier species 'dogs' .*'dog'"):
    evaluate("unlearning_accuracy", task)
  with pytest.raises(ValueError, match="no class of the classifier species 'cow'"):
    evaluate("kept_accuracy", task)


def test_styles_ask_for_a_classifier_of_styles():
  task = make_task(pets.pictures_of(SEEN_2, LOOKS_2), ASKED_2, INK, styled=True)
  task.options.style_classifier = ""
  for name in ("unlearning_accuracy", "kept_accuracy"):
    with pytest.raises(ValueError, match=r"style_classifier is empty and this run has styles"):
      evaluate(name, task)


# Stationarity of eps = w x_t + b_c, whose loss is a quadratic: n records, 64 in a batch.

N, PIXELS = 100, 16


def line(w, b, x_t, t, c=None):
  shift = b[-1] if c is None else b[c][:, None, None, None]
  return w * x_t + shift


def stationarity(w, b, c=(), scale=0.0):
  eps_fn = Partial(line, jnp.float32(w), jnp.asarray(b, jnp.float32))
  task = make_task(np.zeros((1, 4, 4, 1), np.float32), c, reference=pets.records(n=N))
  values = evals.metric("stationarity")(guidance.guided(eps_fn, scale), task)
  return values, task


def design(task, conditional):
  """The inputs [N P, 1 + 4] and targets [N P] of the regression of noise on (x_t, 1_c), float64."""
  rng = task.key("stationarity")
  order = np.random.default_rng(np.asarray(jax.random.key_data(rng))).permutation(N)
  inputs, targets = [], []
  for i, part in enumerate(np.split(order, [64])):
    noise = methods.draw_noise(PROCESS, (len(part), 4, 4, 1), jax.random.fold_in(rng, i))
    abar = PROCESS.abar[np.asarray(noise["t"])][:, None, None, None]
    eps = np.asarray(noise["eps"], np.float64)
    x_t = abar**0.5 * (part[:, None, None, None] / 127.5 - 1) + (1 - abar) ** 0.5 * eps
    one_of = np.eye(4)[part % 3 if conditional else np.full(len(part), 3)]
    each = np.repeat(one_of, PIXELS, axis=0)
    inputs.append(np.concatenate([x_t.reshape(-1, 1), each], axis=1))
    targets.append(eps.ravel())
  return np.concatenate(inputs), np.concatenate(targets)


@pytest.mark.parametrize("conditional", [True, False])
def test_stationarity_is_the_gradient_of_the_mean_loss(conditional):
  w, b = 0.7, np.array([0.3, -0.2, 0.1, 0.05])
  values, task = stationarity(w, b, () if conditional else None)
  inputs, targets = design(task, conditional)
  error = inputs @ np.concatenate([[w], b]) - targets
  assert values["retain_loss"].value == pytest.approx(np.sum(error**2) / N, rel=1e-5)
  norm = np.linalg.norm(2 * inputs.T @ error / N)
  assert values["retain_grad_norm"].value == pytest.approx(norm, rel=1e-5)
  assert values["retain_loss"].ci95 is values["retain_grad_norm"].ci95 is None
  assert values["retain_loss"].identity.startswith("rows=100 reference=heldout:100:")


def test_the_least_squares_solution_is_stationary():
  away, task = stationarity(0.0, np.zeros(4))
  best = np.linalg.lstsq(*design(task, True), rcond=None)[0]
  values, _ = stationarity(best[0], best[1:])
  assert values["retain_grad_norm"].value < 1e-4 * away["retain_grad_norm"].value
  assert values["retain_loss"].value < away["retain_loss"].value


def test_stationarity_is_that_of_the_model_without_guidance():
  w, b = 0.7, np.array([0.3, -0.2, 0.1, 0.05])
  assert stationarity(w, b, scale=2.0)[0] == stationarity(w, b)[0]
