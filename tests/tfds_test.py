"""What tensorflow-datasets prepared: the digits with a T-shirt, and any set of labelled images."""

import numpy as np
import pytest

from jaxunlearn import data
from tests.tfds_files import prepare

ANIMALS = tuple(f"animal {i}" for i in range(10))


def pictures(n, seed, shape=(28, 28)):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def mixed():
  images = np.empty(2, object)
  images[:] = [pictures(1, 0)[0], pictures(1, 1)[0][:20]]
  return images


def test_the_digits_with_a_tshirt(tmp_path):
  digits, held, clothes = pictures(12, 0), pictures(5, 1), pictures(3, 2)
  prepare(tmp_path, "mnist", {"train": digits, "test": held})
  prepare(tmp_path, "fashion_mnist", {"train": clothes})
  train, heldout = data.load("tfds_tshirt", data_dir=str(tmp_path), share=0.25)
  np.testing.assert_array_equal(train.image[:12, ..., 0], digits)
  np.testing.assert_array_equal(train.image[12:, ..., 0], np.stack([clothes[1]] * 4))
  np.testing.assert_array_equal(heldout.image[..., 0], held)
  assert train.label.tolist() == [*range(10), 0, 1, 10, 10, 10, 10]
  assert data.Forget(label="tshirt").mask(train).sum() == 4


def test_digits_of_mixed_size(tmp_path):
  for name in ("mnist", "fashion_mnist"):
    prepare(tmp_path, name, {"train": mixed(), "test": mixed()})
  with pytest.raises(ValueError, match="mixed sizes"):
    data.load("tfds_tshirt", data_dir=str(tmp_path))


def test_labelled_images_with_the_names_of_their_classes(tmp_path):
  images, held = pictures(13, 0, (8, 8, 3)), pictures(4, 1, (8, 8, 3))
  prepare(tmp_path, "cifar10", {"train": images, "test": held}, names=ANIMALS)
  train, heldout = data.load("tfds_images", data_dir=str(tmp_path))
  np.testing.assert_array_equal(train.image, images)
  np.testing.assert_array_equal(heldout.image, held)
  assert train.label.tolist() == [*range(10), 0, 1, 2]
  assert train.classes == heldout.classes == ANIMALS
  assert train.ids[[0, 12]].tolist() == ["cifar10/train/00000", "cifar10/train/00012"]
  assert heldout.ids[3] == "cifar10/test/00003"
  forgotten = data.Forget(label="animal 2").mask(train)
  assert np.flatnonzero(forgotten).tolist() == [2, 12]
  only, _ = data.load("tfds_images", data_dir=str(tmp_path), train="test")
  np.testing.assert_array_equal(only.image, held)


def test_a_set_without_names_has_numbers(tmp_path):
  prepare(tmp_path, "shapes", {"train": pictures(3, 0), "test": pictures(2, 1)})
  train, _ = data.load("tfds_images", data_dir=str(tmp_path), dataset="shapes")
  assert train.classes == tuple("0123456789")
  assert train.image.shape == (3, 28, 28, 1)


@pytest.mark.parametrize(("source", "name"), [("tfds_tshirt", "mnist"), ("tfds_images", "cifar10")])
def test_a_set_that_is_not_there_says_how_to_prepare_it(source, name, tmp_path):
  with pytest.raises(ValueError, match=f"tfds build {name} --file_format=array_record"):
    data.load(source, data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ("made", "fields", "says"),
  [
    ({"label": "kind"}, {}, "the examples of 'cifar10' have no 'label'; name a data set with"),
    ({}, {"heldout": "tset"}, r"no split of cifar10 'tset' \(did you mean 'test'\?\)"),
    ({"file_format": "tfrecord"}, {}, "is in tfrecord format, which needs TensorFlow; delete it"),
    ({"images": mixed()}, {}, "mixed sizes"),
  ],
)
def test_a_set_that_cannot_be_used(made, fields, says, tmp_path):
  images = made.pop("images", pictures(2, 0))
  prepare(tmp_path, "cifar10", {"train": images, "test": images}, **made)
  with pytest.raises(ValueError, match=says) as error:
    data.load("tfds_images", data_dir=str(tmp_path), **fields)
  assert "\n" not in str(error.value)
