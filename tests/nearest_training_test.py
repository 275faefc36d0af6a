"""Samples beside training pictures: copies are found, fresh draws are not, shares are exact."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn import data, evals
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import nearest_training


def records(pixels, name):
  ids = np.array([f"{name}/{i}" for i in range(len(pixels))])
  return data.Records(ids, pixels, np.zeros(len(pixels), np.int32), ("all",))


RNG = np.random.default_rng(0)
DRAW = lambda n: RNG.integers(0, 256, (n, 4, 4, 1), np.uint8)
TRAIN, HELDOUT = DRAW(60), DRAW(200)
NONE = records(TRAIN[:0], "none")


def task(samples):
  return evals.Task(
    process=Diffusion(),
    target=np.zeros((0, 4, 4, 1), np.float32),
    reference=NONE,
    classes=("all",),
    samples=samples,
    identity="n=1",
    options=evals.Options(),
    rng=jax.random.key(0),
    split=evals.Split(records(TRAIN, "t"), NONE, records(HELDOUT, "h"), NONE),
  )


def found(samples):
  return nearest_training.evaluate(lambda *_: None, task(samples))


def test_copies_are_found():
  near = np.clip(TRAIN[:20].astype(int) + RNG.integers(-3, 4, (20, 4, 4, 1)), 0, 255)
  values = found(data.to_model(near.astype(np.uint8)))
  assert values["copied"].value == 1 and values["nearer"].value == 1
  assert "train=60 heldout=200" in values["copied"].identity


def test_fresh_draws_are_as_far_as_held_out_ones():
  values = found(data.to_model(DRAW(400)))
  assert values["copied"].ci95[0] < 0.1 and values["copied"].value < 0.12
  assert abs(values["nearer"].value - 0.5) < 0.08
  assert values["nearer"].ci95[0] < 0.5 < values["nearer"].ci95[1]


def test_the_distance_is_that_of_the_nearest():
  x = data.to_model(DRAW(5))
  got = nearest_training.nearest(x, iter([data.to_model(TRAIN[:31]), data.to_model(TRAIN[31:])]))
  apart = (x[:, None] - data.to_model(TRAIN)) / 2
  np.testing.assert_allclose(got, np.sqrt((apart**2).mean((2, 3, 4))).min(1), rtol=1e-4)


def test_ties_count_half():
  assert nearest_training.nearer(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.75
  assert nearest_training.nearer(np.array([3.0]), np.array([1.0, 2.0])) == 0


@pytest.mark.parametrize("gone", ["kept", "like_kept"])
def test_without_either_set_there_is_no_value(gone):
  whole = task(data.to_model(TRAIN))
  split = whole.split._replace(**{gone: NONE})
  assert not nearest_training.evaluate(lambda *_: None, dataclasses.replace(whole, split=split))
