"""Which record is of which source, and when a shard sees it."""

import re

import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.cdm import shards, sources
from jaxunlearn.cdm.sources import Split


def records(n=60):
  ids = np.array([f"{'ab'[i % 2]}/{i:03d}" for i in range(n)])
  image = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 1), np.uint8)
  label = (np.arange(n) % 5).astype(np.int32)
  style = (np.arange(n) % 3).astype(np.int32)
  return data.Records(ids, image, label, tuple("vwxyz"), style, ("ink", "oil", "wax"))


def counts(split, seed=0):
  named = sources.members(sources.split(records(), split, seed))
  return {name: len(ids) for name, ids in named.items()}


def test_by_folder_class_and_style():
  assert counts(Split("folder", 0)) == {"a": 30, "b": 30}
  assert counts(Split("class", 0)) == dict.fromkeys("vwxyz", 12)
  assert counts(Split("style", 3)) == {"ink": 20, "oil": 20, "wax": 20}
  assert counts(Split("class", 2)) == {"class-0": 36, "class-1": 24}  # dealt out in turn


def test_more_sources_than_values_cut_each_at_random():
  found = counts(Split("folder", 4))
  assert sorted(found) == ["a-0", "a-1", "b-0", "b-1"]
  assert found["a-0"] + found["a-1"] == 30 and min(found.values()) > 5
  assert sorted(counts(Split("uniform", 3))) == ["uniform-0", "uniform-1", "uniform-2"]


def test_a_record_keeps_its_source_whatever_becomes_of_the_others():
  whole = sources.split(records(), Split("uniform", 4), 1)
  half = sources.split(records().take(np.arange(0, 60, 2)), Split("uniform", 4), 1)
  assert half == {name: whole[name] for name in half}
  assert sources.split(records(), Split("uniform", 4), 2) != whole


def test_held_out_records_are_of_the_sources_of_the_others():
  few = records().take(np.array([57, 4, 13]))
  whole = sources.split(records(), Split("class", 3), 0)
  ours = sources.split(few, Split("class", 3), 0, like=records())
  assert ours == {name: whole[name] for name in few.ids.tolist()}


def test_by_a_file_and_back(tmp_path):
  path = tmp_path / "map.csv"
  given = sources.split(records(), Split("uniform", 2), 0)
  sources.write(path, given, "id")
  assert sources.parse(path.read_text()) == given
  assert sources.split(records(), Split(f"file:{path}", 0), 5) == given


@pytest.mark.parametrize(
  ("split", "message"),
  [
    (lambda: Split("foldr"), "no split 'foldr' (did you mean 'folder'?)"),
    (lambda: Split("uniform", 0), "sources.n 0 of a split by uniform; use 1 or more"),
    (lambda: Split("folder", 3), "sources.n 3 is no multiple of the 2 values of folder"),
    (lambda: Split("uniform", 1000), "leaves 94"),
    (lambda: Split("file:nowhere.csv"), "cannot read nowhere.csv"),
  ],
)
def test_bad_splits(split, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    sources.split(records(), split(), 0)


def test_bad_files(tmp_path):
  path = tmp_path / "map.csv"
  for text, message in (
    ("id,sauce\n", "give a CSV with columns id and source"),
    ("id,source\na/000,x\n", "has no source for 59 of 60 records, the first is 'b/001'"),
    ("id,source\na/000,x\na/000,y\n", "1 ids have two sources, the first is 'a/000'"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
      sources.split(records(), Split(f"file:{path}", 0), 0)


def shard(slices=1, n=60):
  return shards.Shard("s", records(n), batch=7, steps=40, seed=3, slices=slices)


def test_every_epoch_shows_every_record_once():
  one = shard()
  seen = np.concatenate([one.picks(step) for step in range(40)])
  for epoch in range(4):
    assert sorted(seen[60 * epoch : 60 * epoch + 60]) == list(range(60))
  assert list(seen[:60]) != list(seen[60:120])
  np.testing.assert_array_equal(one.at(3).image, data.to_model(records().image[one.picks(3)]))


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("gone", [("a/010",), ("b/001", "a/020"), ("b/059",)])
def test_a_record_changes_nothing_before_it_is_seen(slices, gone):
  one = shard(slices)
  without = one.without(gone)
  first = one.first_step(gone)
  name = lambda s, step: s.records.ids[s.picks(step)].tolist()
  assert all(name(one, step) == name(without, step) for step in range(first))
  assert set(gone) & set(name(one, first))
  assert not any(set(gone) & set(name(one, step)) for step in range(first))
  assert not any(set(gone) & set(name(without, step)) for step in range(40))
  assert without.first_step(gone) is None


def test_slices_come_in_one_after_the_other():
  one, whole = shard(4), shard()
  seen = [set(one.picks(step).tolist()) for step in range(40)]
  counted = [len(set().union(*seen[:last])) for last in (10, 20, 30, 40)]
  assert counted == sorted(counted) and counted[0] < 30 and counted[-1] > 45
  late = [whole.first_step([n]) for n in records().ids]
  assert max(s for s in late if s is not None) < 10  # unsliced: all within the first epoch


def test_a_shard_that_is_too_short_sees_not_every_record():
  brief = shards.Shard("s", records(), batch=1, steps=5, seed=0)
  firsts = [brief.first_step([name]) for name in records().ids]
  assert sorted(f for f in firsts if f is not None) == [0, 1, 2, 3, 4]
