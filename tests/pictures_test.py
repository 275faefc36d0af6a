"""pictures.py: grids by hand-made images, nearest samples by brute force, files that are whole."""

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data
from jaxunlearn.reports import pictures

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_each_image(channels):
  images = RNG.uniform(-1, 1, (5, 4, 6, channels)).astype(np.float32)
  picture = pictures.grid(images, columns=3, scale=2)
  assert picture.dtype == np.uint8
  assert picture.shape == (2 * (2 * 5 - 1), 2 * (3 * 7 - 1), channels)
  small = picture[::2, ::2]
  np.testing.assert_array_equal(picture, small.repeat(2, 0).repeat(2, 1))
  for i, image in enumerate(images):
    top, left = 5 * (i // 3), 7 * (i % 3)
    expected = np.rint((image + 1) * 127.5)
    np.testing.assert_array_equal(small[top : top + 4, left : left + 6], expected)


def test_grid_shows_a_diverged_model():
  values = np.array([np.nan, -np.inf, np.inf, -3.0, 3.0, 0.0], np.float32).reshape(1, 1, 6, 1)
  assert pictures.grid(values, scale=1).ravel().tolist() == [0, 0, 255, 0, 255, 128]


@pytest.mark.parametrize("shape", [(0, 4, 4, 1), (2, 4, 4, 2)])
def test_grid_refuses(shape):
  with pytest.raises(ValueError, match="C 1 or 3"):
    pictures.grid(np.zeros(shape, np.float32))


def test_nearest_to_any_target_first():
  samples = RNG.normal(size=(40, 3, 3, 1)).astype(np.float32)
  samples[7] = np.nan
  target = samples[[11, 30]] + np.float32(0.01)
  found = pictures.nearest(samples, target, n=5)
  squared = ((samples[:, None] - target[None]) ** 2).sum((2, 3, 4)).min(1)
  order = sorted((d, i) for i, d in enumerate(squared) if not np.isnan(d))
  np.testing.assert_array_equal(found, samples[[i for _, i in order[:5]]])
  assert np.isnan(pictures.nearest(samples, target, n=40)[-1]).all()


def test_write_phase(tmp_path):
  samples = RNG.uniform(-1, 1, (70, 28, 28, 1)).astype(np.float32)
  target = samples[66:67]
  pictures.write_phase(tmp_path / "samples", "before", samples, target)
  names = sorted(p.name for p in (tmp_path / "samples").iterdir())
  assert names == ["before.png", "before_nearest.png", "target.png"]
  read = lambda name: np.asarray(Image.open(tmp_path / "samples" / name))
  assert read("before.png").shape == (3 * (8 * 29 - 1),) * 2
  np.testing.assert_array_equal(read("before.png"), pictures.grid(samples[:64])[..., 0])
  np.testing.assert_array_equal(read("before_nearest.png")[:, : 3 * 28], read("target.png"))


@pytest.mark.parametrize("two", [False, True])
def test_write_conditions_has_a_row_a_kept_condition(tmp_path, two):
  """Asked for: 2, then 0, 1, 3 in turn, of which there are four, four and three."""
  place = np.array([2] * 20 + [0, 1, 3] * 3 + [0, 1])
  c = np.stack(np.divmod(place, 2), axis=1) if two else place
  samples = RNG.uniform(-1, 1, (len(c), 48, 48, 1)).astype(np.float32)
  pictures.write_conditions(tmp_path, "after", samples, c, place == 2)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["after.png", "after_asked.png"]
  read = lambda name: np.asarray(Image.open(tmp_path / name))
  rows = samples[[20, 23, 26, 21, 24, 27, 22, 25, 28]]
  grid = lambda images, columns: pictures.grid(images, columns, scale=2)[..., 0]
  np.testing.assert_array_equal(read("after.png"), grid(rows, 3))
  np.testing.assert_array_equal(read("after_asked.png"), grid(samples[:16], 8))


def test_write_conditions_shows_eight_of_each_at_most(tmp_path):
  c = np.arange(30) % 3
  samples = RNG.uniform(-1, 1, (30, 8, 8, 1)).astype(np.float32)
  pictures.write_conditions(tmp_path, "before", samples, c, np.zeros(30, bool))
  assert [p.name for p in tmp_path.iterdir()] == ["before.png"]
  rows = np.concatenate([samples[c == k][:8] for k in range(3)])
  picture = np.asarray(Image.open(tmp_path / "before.png"))
  np.testing.assert_array_equal(picture, pictures.grid(rows)[..., 0])


def test_write_conditions_of_what_is_to_be_forgotten_alone(tmp_path):
  samples = np.zeros((3, 8, 8, 3), np.float32)
  pictures.write_conditions(tmp_path, "after", samples, np.zeros(3, int), np.ones(3, bool))
  assert [p.name for p in tmp_path.iterdir()] == ["after_asked.png"]


def test_write_phase_in_colour_without_a_target(tmp_path):
  samples = RNG.uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32)
  pictures.write_phase(tmp_path, "after", samples, samples[:0])
  assert [p.name for p in tmp_path.iterdir()] == ["after.png"]
  image = Image.open(tmp_path / "after.png")
  assert image.mode == "RGB" and image.size == (3 * 65 - 1, 64)


def test_beside_each_sample_stands_the_nearest_training_picture(tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (150, 4, 4, 3), dtype=np.uint8)
  records = data.Records(np.arange(150).astype(str), image, np.zeros(150, np.int32), ("a",))
  parts = (records.take(np.arange(100)), records.take(np.arange(100, 150)))
  samples = data.to_model(image[[3, 120]]) + np.float32(0.01)
  found = pictures.beside(samples, parts)
  np.testing.assert_array_equal(data.to_pixels(found), image[[3, 120]])
  pictures.write_pairs(tmp_path, "after", samples, found, samples[:1])
  assert {path.name for path in tmp_path.iterdir()} == {
    "after_pairs.png",
    "after_nearest.png",
    "target.png",
  }
