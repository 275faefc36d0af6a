"""The styles drawn by rule, by their closed forms; and which pictures are there in which style."""

import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.data import digits_64, emoji_styles

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)


def test_grey_is_the_luma_and_leaves_grey_alone():
  got = emoji_styles.grey(PICTURES)
  want = PICTURES @ np.array([0.299, 0.587, 0.114])
  assert np.abs(got - want[..., None]).max() <= 0.5 + 1e-9
  np.testing.assert_array_equal(emoji_styles.grey(got), got)


def test_twice_negative_is_as_it_was():
  assert emoji_styles.negative(PICTURES)[0, 0, 0, 0] == 255 - int(PICTURES[0, 0, 0, 0])
  np.testing.assert_array_equal(emoji_styles.negative(emoji_styles.negative(PICTURES)), PICTURES)


def test_a_stone_of_the_mosaic_is_the_mean_of_its_pixels():
  got = emoji_styles.mosaic(PICTURES, stone=4)
  for y in range(0, 8, 4):
    for x in range(0, 12, 4):
      stone = got[:, y : y + 4, x : x + 4].reshape(3, 16, 3)
      assert np.ptp(stone, axis=1).max() == 0
      mean = PICTURES[:, y : y + 4, x : x + 4].reshape(3, 16, 3).mean(axis=1)
      assert np.abs(stone[:, 0] - mean).max() <= 0.5 + 1e-9


def test_edges_are_dark_where_the_luma_changes_and_white_elsewhere():
  flat = np.full((1, 6, 6, 3), 90, np.uint8)
  assert (emoji_styles.edges(flat) == 255).all()
  step = flat.copy()
  step[:, :, 3:] = 110  # Sobel: 4 times the step, on both sides of it
  got = emoji_styles.edges(step)[0, :, :, 0]
  assert (got[:, 2:4] == 255 - 80).all() and (np.delete(got, (2, 3), axis=1) == 255).all()
  turned = emoji_styles.edges(step.swapaxes(1, 2))[0, :, :, 0]
  np.testing.assert_array_equal(turned, got.T)


def test_every_picture_is_there_in_every_style_and_held_out_in_all_or_none():
  train, heldout = data.load("emoji_styles")
  assert train.vocabulary == (emoji_styles.KINDS, emoji_styles.Source().styles)
  assert train.image.shape[1:] == (64, 64, 3)
  for records in (train, heldout):
    parts = [records.take(np.flatnonzero(records.style == i)) for i in range(6)]
    names = [[name.partition("/")[2] for name in part.ids.tolist()] for part in parts]
    assert all(one == names[0] for one in names)
    noto, _, grey, negative, mosaic, edges = (np.asarray(part.image) for part in parts)
    np.testing.assert_array_equal(negative, 255 - noto)
    for rule, drawn in (("grey", grey), ("mosaic", mosaic), ("edges", edges)):
      np.testing.assert_array_equal(emoji_styles.RULES[rule](noto), drawn)
  names = lambda records: {name.partition("/")[2] for name in records.ids.tolist()}
  assert not names(train) & names(heldout)
  assert np.bincount(heldout.label).min() >= 12


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"stone": 5}, "stones of 5 pixels do not divide 64x64 pictures"),
    ({"kinds": ("hart",)}, r"no kind of emoji 'hart' \(did you mean 'heart'"),
    ({"styles": ("sketch",)}, "no style of emoji 'sketch'.*there are: noto, twemoji, grey"),
    ({"most": 0}, "most is 0; use a whole number, 1 or more"),
  ],
)
def test_a_kind_or_a_style_that_is_none_is_refused(fields, error):
  with pytest.raises(ValueError, match=error):
    data.load("emoji_styles", **fields)


def test_digits_are_dark_on_white_and_twice_as_large():
  train, heldout = data.load("digits_64", digits=50)
  assert train.image.shape[1:] == heldout.image.shape[1:] == (64, 64, 3)
  small = np.zeros((1, 28, 28, 1), np.uint8)
  small[0, 5, 7] = 200
  large = digits_64.enlarged(small)
  assert (large[0, 14:16, 18:20] == 55).all() and (large == 55).sum() == 12
  assert (large != 55).sum() == (large == 255).sum()
