"""Rows beside a baseline, seed by seed; pictures for TIFA; groups left out of captioned emoji."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.data import emoji_captions
from jaxunlearn.evals import classifiers, statistics
from jaxunlearn.reports import paired, tifa


def entry(*runs):
  return {"value": float(np.mean(runs)), "ci95": None, "runs": list(runs), "identity": ["x=1"]}


def test_a_change_is_the_mean_over_seeds_of_each_ones_own():
  table = {
    "base": {"fid": entry(10.0, 20.0, 40.0), "steps": 3},
    "row": {"fid": entry(11.0, 21.0, 44.0), "steps": 3, "diverged": []},
  }
  paired.add(table, "base")
  found = table["row"]["fid_change"]
  assert found["runs"] == pytest.approx([0.1, 0.05, 0.1])
  assert found["value"] == pytest.approx(0.25 / 3)
  assert found["ci95"] == statistics.mean_interval(np.array(found["runs"]))
  assert found["identity"] == ["baseline=base"] and "fid_change" not in table["base"]
  assert "steps_change" not in table["row"]


def test_rows_of_other_runs_are_left_as_they_are():
  table = {"base": {"fid": entry(10.0, 20.0)}, "row": {"fid": entry(1.0)}, "bad": {"other": None}}
  paired.add(table, "base")
  assert set(table["row"]) == {"fid"} and set(table["bad"]) == {"other"}
  zero = {"base": {"fid": entry(0.0)}, "row": {"fid": entry(1.0)}}
  paired.add(zero, "base")
  assert set(zero["row"]) == {"fid"}
  with pytest.raises(ValueError, match=r"no row of config\.paired 'bse'"):
    paired.add(table, "bse")


def test_pictures_for_tifa(tmp_path):
  images = np.stack([np.full((4, 4, 3), v, np.float32) for v in (-1, 1)])
  tifa.write(tmp_path, ["a whale", "a hand"], images)
  texts = json.loads((tmp_path / "text_inputs.json").read_text())
  assert texts == [{"id": "0000", "caption": "a whale"}, {"id": "0001", "caption": "a hand"}]
  places = json.loads((tmp_path / "imgs.json").read_text())
  with Image.open(tmp_path / places["0001"]) as picture:
    assert picture.size == (4, 4) and picture.getpixel((0, 0)) == (255, 255, 255)


def test_a_group_is_left_out_whole_and_prompts_keep_their_numbers():
  gone = ("Animals & Nature", "Food & Drink")
  assert emoji_captions.of_groups(gone).sum() == 2 * (159 + 131)
  parts = emoji_captions.Source(copies=1, without=gone).load()
  ids = {name for records in parts for name in records.ids.tolist()}
  assert "a whale emoji in noto style" in parts[0].classes
  assert not {"noto/whale", "noto/whale#0001", "twemoji/cactus"} & ids
  assert {"noto/rocket", "noto/rocket#0001"} < ids
  with pytest.raises(ValueError, match="no group of emoji 'Food'"):
    emoji_captions.of_groups(("Food",))


def test_pictures_of_twice_the_size_are_halved_for_a_classifier():
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
  small = classifiers.shrunk(images, (16, 16, 3))
  np.testing.assert_allclose(small[1, 0, 3], images[1, :2, 6:8].mean((0, 1)), rtol=1e-5)
  assert classifiers.shrunk(small, (16, 16, 3)) is small
  odd = images[:, :24]
  assert classifiers.shrunk(odd, (16, 16, 3)) is odd
