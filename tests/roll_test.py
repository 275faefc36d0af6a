"""The data of a run that goes on is the data that it began with."""

import dataclasses
import json
import re

import numpy as np
import pytest

from configs import common
from jaxunlearn import build, streams, train
from jaxunlearn.data import roll
from tests import pets, tiny_config


def entries(records, forget=(), heldout=None, others=None):
  mask = np.isin(records.ids, list(forget))
  heldout = records.take(np.arange(0)) if heldout is None else heldout
  return roll.of(records, mask, heldout, others or {})


def without(records, *names):
  return records.take(np.flatnonzero(~np.isin(records.ids, names)))


def repainted(records, name):
  image = records.image.copy()
  image[records.ids == name] ^= 1
  return dataclasses.replace(records, image=image)


def said(then, now):
  return roll.differences(then, now)


def test_the_same_records_are_the_same():
  assert said(entries(pets.records()), entries(pets.records())) == ""
  assert said(entries(pets.records(styled=True)), entries(pets.records(styled=True))) == ""


def test_what_was_added_is_missing_or_changed_is_counted_and_named():
  all_, few = pets.records(), without(pets.records(), "pet/3", "pet/7")
  assert said(entries(few), entries(all_)) == (
    "58 records then, 60 now: 2 added ('pet/3', 'pet/7')"
  )
  assert said(entries(all_), entries(few)) == (
    "60 records then, 58 now: 2 missing ('pet/3', 'pet/7')"
  )
  changed = entries(repainted(few, "pet/5"))
  assert said(entries(all_), changed) == (
    "60 records then, 58 now: 2 missing ('pet/3', 'pet/7'), 1 changed ('pet/5')"
  )


def test_another_class_or_style_is_a_change():
  styled = pets.records(styled=True)
  label = np.where(styled.ids == "pet/5", 0, styled.label).astype(np.int32)
  style = np.where(styled.ids == "pet/5", 1 - styled.style, styled.style).astype(np.int32)
  for other in (dataclasses.replace(styled, label=label), dataclasses.replace(styled, style=style)):
    assert "1 changed ('pet/5')" in said(entries(styled), entries(other))


def test_other_records_to_forget_or_held_out():
  mine = pets.records()
  assert said(entries(mine, ["pet/1"]), entries(mine, ["pet/1", "pet/2"])) == (
    "60 records then, 60 now: 1 kept before and now to be forgotten ('pet/2')"
  )
  held = mine.take(np.array([4]))
  assert "1 kept before and now held out ('pet/4')" in said(
    entries(mine), entries(without(mine, "pet/4"), heldout=held)
  )


def test_what_streams_read_from_elsewhere_belongs_to_the_run():
  mine, other = pets.records(), pets.records().take(np.arange(3))
  then = entries(mine, others={"alt": other})
  assert said(then, entries(mine, others={"alt": other})) == ""
  assert "1 changed ('pet/2')" in said(
    then, entries(mine, others={"alt": repainted(other, "pet/2")})
  )


def test_the_file_and_back(tmp_path):
  names = np.array(["a\tb.png", "é.png", "with blank.png", "x\u2028y.png"])
  mine = dataclasses.replace(pets.records().take(np.arange(4)), ids=names)
  other = pets.records().take(np.arange(2))
  then = entries(mine, [names[1]], heldout=other, others={"alt": other})
  (tmp_path / roll.FILE).write_text(roll.write(then))
  assert roll.read(tmp_path / roll.FILE) == then
  (tmp_path / roll.FILE).write_text("kept\tx\n")
  with pytest.raises(ValueError, match=r"records\.txt is damaged at line 1; delete it"):
    roll.read(tmp_path / roll.FILE)


# A run.


@pytest.fixture
def config():
  return tiny_config.get_config("siss")


def test_a_run_is_refused_on_other_data_and_nothing_is_written(config, tmp_path):
  claim = lambda *forget: train.claim(tmp_path, config, entries(pets.records(), forget))
  claim("pet/1")
  claim("pet/1")
  before = (tmp_path / roll.FILE).read_bytes()
  says = (
    r"^the data of .* changed since the run began: 60 records then, 60 now: 1 kept before and now "
    r"to be forgotten \('pet/2'\)\. Restore it, or use another --workdir; to go on with the data "
    r"as it is, delete .*records\.txt$"
  )
  with pytest.raises(ValueError, match=says):
    claim("pet/1", "pet/2")
  assert (tmp_path / roll.FILE).read_bytes() == before
  (tmp_path / roll.FILE).unlink()
  claim("pet/1", "pet/2")
  claim("pet/1", "pet/2")


def test_a_refused_launch_binds_nothing(config, tmp_path):
  train.claim(tmp_path, config, entries(pets.records()))
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  config.mesh.data = 1
  with pytest.raises(ValueError, match="1 missing"):
    train.claim(tmp_path, config, entries(without(pets.records(), "pet/1")))
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_older_than_its_roll_and_some_fields_goes_on_with_a_note(config, tmp_path, caplog):
  claim = lambda: train.claim(tmp_path, config, entries(pets.records()))
  claim()
  path = tmp_path / "config.json"
  old = json.loads(path.read_text())
  del old["forget"]["copies"], old["forget"]["near"]
  path.write_text(json.dumps(old))
  (tmp_path / roll.FILE).unlink()
  claim()
  assert "config.forget.copies existed; it goes on with the value forget" in caplog.text
  assert "has no records.txt: its data is taken to be what it was" in caplog.text
  assert (tmp_path / roll.FILE).exists()
  old["forget"]["label"] = "other"
  path.write_text(json.dumps(old))
  with pytest.raises(ValueError, match=re.escape("another config (differs in: forget.label ")):
    claim()


def test_the_entries_of_a_run(config, tmp_path):
  c = np.arange(4, dtype=np.int32)
  np.savez(tmp_path / streams.SAMPLES, image=np.zeros((4, 28, 28, 1), np.uint8), c=c)
  config.model.classes = (11,)
  config.streams = {"x": {"take": f"samples:{tmp_path}", "c": "kept"}, "a": "forget"}
  setup = build.build(config)
  found = setup.entries()
  count = lambda part: sum(entry.part == part for entry in found.values())
  assert (count("forget"), count("kept")) == (12, 96)
  assert count("heldout") == len(setup.heldout)
  assert [key for key, entry in found.items() if entry.part == "x"] == [
    ("x", f"sample/{i:05d}") for i in range(4)
  ]


@pytest.mark.parametrize(
  ("images", "model", "of_file", "says"),
  [
    ((256, 256, 3), (16, 16, 3), True, "set --config.data.size=16"),
    ((256, 256, 3), (16, 16, 3), False, "set --config.data.size=16"),
    (
      *((16, 16, 3), (16, 16, 1), True),
      "set --config.data.channels=1 --config.data.convert=True",
    ),
    (
      *((256, 256, 3), (28, 28, 1), True),
      "set --config.data.size=28 --config.data.channels=1 --config.data.convert=True",
    ),
    ((256, 256, 3), (64, 32, 3), True, "take a data set of the model's size"),
  ],
)
def test_the_advice_on_sizes_names_fields_that_are_there(images, model, of_file, says, config):
  config.data = common.source("folder")
  assert build.size_advice(config, images, model, of_file) == says


def test_the_advice_on_sizes_where_the_data_has_none(config):
  sizes = ((28, 28, 1), (32, 32, 1))
  assert "config.model.sample_size" in build.size_advice(config, *sizes, False)
  assert build.size_advice(config, *sizes, True) == "take a data set of the model's size"
