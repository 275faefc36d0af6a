"""Alignment: real pictures show what they are, others do not, and captions go by neighbours."""

import dataclasses

import jax
import numpy as np

from jaxunlearn import data, evals
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import alignment

TRAIN, HELDOUT = data.load("emoji", groups=("Flags", "People & Body"), size=16)
SOME = np.arange(0, len(TRAIN), 9)


def task(c, samples=None, **options):
  fields = {"classifier": "emoji_groups", "style_classifier": "emoji_styles", **options}
  kept = TRAIN.take(SOME)
  none = TRAIN.take(np.empty(0, int))
  return evals.Task(
    process=Diffusion(),
    target=np.zeros((0, 16, 16, 3), np.float32),
    reference=HELDOUT,
    classes=TRAIN.classes,
    samples=data.to_model(kept.image) if samples is None else samples,
    identity="n=1",
    options=dataclasses.replace(evals.Options(), **fields),
    rng=jax.random.key(0),
    c=c,
    vocabulary=TRAIN.vocabulary,
    split=evals.Split(kept, none, HELDOUT, none),
  )


def found(given):
  return {name: v.value for name, v in alignment.evaluate(lambda *_: None, given).items()}


def test_pictures_are_aligned_with_their_own_names_and_not_with_others():
  c = TRAIN.take(SOME).conditions
  right, wrong = found(task(c)), found(task(1 - c))
  assert right["aligned_class"] > 0.9 and right["aligned_style"] > 0.8
  assert right["aligned_nearest"] == 1 and wrong["aligned_nearest"] == 0
  for name in ("aligned_class", "aligned_style"):
    assert wrong[name] < 1 - right[name] + 0.01
  names = ("aligned_class", "aligned_style", "aligned_nearest")
  assert np.isclose(right["alignment"], np.mean([right[name] for name in names]))


def test_names_that_no_classifier_knows_go_by_the_nearest_picture():
  given = task(TRAIN.take(SOME).conditions, style_classifier="")
  captions = dataclasses.replace(given, vocabulary=(("a flag", "a hand"), TRAIN.styles))
  assert set(found(captions)) == {"aligned_nearest", "alignment"}
  assert found(dataclasses.replace(given, c=None)) == {}
