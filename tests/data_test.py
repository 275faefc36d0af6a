"""Records, what to delete from them, streams as pure functions of (seed, step), and sources."""

import dataclasses
import re

import numpy as np
import pytest

from jaxunlearn import data, streams
from jaxunlearn.data import mnist_tshirt
from tests import pets


def some_records(n=10, size=4, kind="digit"):
  image = np.random.default_rng(n).integers(0, 256, (n, size, size, 1), dtype=np.uint8)
  ids = np.array([f"{kind}/{i}" for i in range(n)])
  return data.Records(ids, image, np.arange(n, dtype=np.int32) % 3, ("0", "1", "2"))


def some_streams(seed=0, batch=4, n=10, forget=3):
  mask = np.arange(n) < forget
  return streams.make(some_records(n), mask, {"x": "retain", "a": "forget"}, batch, seed)


def visits(stream, steps):
  return np.concatenate([stream.at(step).index for step in range(steps)])


def test_a_batch_is_a_function_of_seed_and_step():
  once, again = some_streams()["x"], some_streams()["x"]
  later = once.at(5)
  for step in (0, 5, 1000):
    for a, b in zip(once.at(step), again.at(step), strict=True):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(once.at(5).image, later.image)
  assert not np.array_equal(visits(once, 7), visits(some_streams(seed=1)["x"], 7))


def test_every_epoch_is_a_permutation_of_its_own():
  stream = some_streams()["x"]  # 7 records in batches of 4: 7 steps are 4 epochs
  epochs = visits(stream, 7).reshape(4, 7)
  assert (np.sort(epochs, axis=1) == np.arange(3, 10)).all()
  assert len(np.unique(epochs, axis=0)) == 4


def test_a_batch_larger_than_the_set_repeats_it_evenly():
  counts = np.bincount(some_streams(batch=9)["a"].at(0).index)
  assert counts.tolist() == [3, 3, 3]


def test_streams_are_shuffled_independently():
  records, mask = some_records(50), np.zeros(50, bool)
  made = streams.make(records, mask, {"x": "all", "alt": "all"}, 50, seed=0)
  x, alt = (made[name].at(0).index for name in ("x", "alt"))
  assert not np.array_equal(x, alt)
  alone = streams.make(records, mask, {"alt": "all"}, 50, seed=0)
  np.testing.assert_array_equal(alone["alt"].at(0).index, alt)


def test_rows_are_the_records_in_minus_one_to_one():
  records = some_records()
  stream = streams.Stream(records, np.arange(10), 4, (0,), conditional=True)
  image, c, index, _ = stream.at(2)
  assert image.dtype == np.float32
  np.testing.assert_array_equal(image, records.image[index].astype(np.float32) / 127.5 - 1)
  np.testing.assert_array_equal(c, records.label[index])
  assert some_streams()["x"].at(0).c is None
  assert data.to_model(np.array([0, 255], np.uint8)).tolist() == [-1, 1]


def test_everything_is_the_subset_in_order():
  made = some_streams()
  assert [r.index.tolist() for r in made["a"].chunks(2)] == [[0, 1], [2]]
  assert next(made["x"].chunks()).index.tolist() == list(range(3, 10))


def test_what_to_forget_by_ids_file_or_class(tmp_path):
  records = some_records()
  (tmp_path / "ids.txt").write_text("digit/2\n\ndigit/0\n")
  by_file = data.Forget(file=str(tmp_path / "ids.txt")).mask(records)
  assert np.flatnonzero(by_file).tolist() == [0, 2]
  assert (data.Forget(ids=("digit/0", "digit/2")).mask(records) == by_file).all()
  assert np.flatnonzero(data.Forget(label="1").mask(records)).tolist() == [1, 4, 7]
  assert not data.Forget().mask(records).any()


@pytest.mark.parametrize(
  ("forget", "says"),
  [
    ({"ids": ("digit/11",)}, "1 of 1 ids .* 'digit/11' \\(did you mean 'digit/1'\\?\\)"),
    ({"ids": ("digit/1", "frog")}, "1 of 2 ids .* 'frog'; ids look like 'digit/0'"),
    ({"label": "shoe"}, "no class 'shoe'; there are: 0, 1, 2"),
    ({"file": "/nowhere"}, "'/nowhere' is not a file"),
    ({"file": "/dev/null/x"}, "is not a file"),
    ({"ids": ("digit/1",), "label": "1"}, "both ids and label"),
    ({"ids": tuple(f"digit/{i}" for i in range(10))}, "all 10 records"),
  ],
)
def test_a_bad_forget_set(forget, says):
  with pytest.raises(ValueError, match=says):
    data.Forget(**forget).mask(some_records())


def test_an_empty_file_or_class_to_forget(tmp_path):
  (tmp_path / "ids.txt").write_text("\n")
  with pytest.raises(ValueError, match=r"ids\.txt' is empty"):
    data.Forget(file=str(tmp_path / "ids.txt")).mask(some_records())
  records = some_records().take(np.array([0, 1]))
  with pytest.raises(ValueError, match=r"forget\.label selects no record"):
    data.Forget(label="2").mask(records)


def test_a_stream_of_an_empty_or_unknown_subset():
  with pytest.raises(ValueError, match="'a' is the forget set, which is empty"):
    some_streams(forget=0)
  with pytest.raises(ValueError, match=re.escape("no subset 'retian' (did you mean 'retain'?)")):
    streams.make(some_records(), np.zeros(10, bool), {"x": "retian"}, 2, 0)


def test_records_that_do_not_fit_together():
  with pytest.raises(ValueError, match="mixed sizes"):
    data.concatenate([some_records(), some_records(size=5, kind="large")])
  with pytest.raises(ValueError, match="ids repeat"):
    data.concatenate([some_records(), some_records()])
  records = some_records()
  with pytest.raises(ValueError, match="uint8"):
    data.Records(records.ids, records.image / 255, records.label, records.classes)
  with pytest.raises(ValueError, match="one of each per record"):
    data.Records(records.ids[1:], records.image, records.label, records.classes)


def test_concatenate_relabels_into_the_union_of_classes():
  shirts = data.Records(
    np.array(["shirt/0"]), np.zeros((1, 4, 4, 1), np.uint8), np.zeros(1, np.int32), ("shirt",)
  )
  both = data.concatenate([some_records(), shirts])
  assert both.classes == ("0", "1", "2", "shirt")
  assert both.classes[both.label[-1]] == "shirt"
  assert both.label[:10].tolist() == some_records().label.tolist()


def test_fingerprint_sees_ids_labels_and_pixels():
  records = some_records()
  image, label, ids = records.image.copy(), records.label.copy(), records.ids.copy()
  image[3, 1, 1], label[3], ids[3] = 255 - image[3, 1, 1], 9, "other"
  prints = {
    data.Records(*fields, records.classes).fingerprint()
    for fields in [
      (records.ids, records.image, records.label),
      (records.ids, image, records.label),
      (records.ids, records.image, label),
      (ids, records.image, records.label),
    ]
  }
  assert len(prints) == 4
  assert records.fingerprint() == some_records().fingerprint()


# Styles and conditions.


def test_conditions_are_the_class_or_the_class_and_the_style():
  plain, styled = pets.records(), pets.records(styled=True)
  assert plain.vocabulary == (pets.CLASSES,)
  assert styled.vocabulary == (pets.CLASSES, pets.STYLES)
  assert {plain.conditions.dtype, styled.conditions.dtype} == {np.dtype(np.int32)}
  np.testing.assert_array_equal(plain.conditions, plain.label)
  np.testing.assert_array_equal(styled.conditions, np.stack([styled.label, styled.style], 1))


def test_records_take_their_styles_along():
  styled, index = pets.records(styled=True), np.array([7, 3, 3 + 6])
  few = styled.take(index)
  assert few.style.tolist() == styled.style[index].tolist() and few.styles == pets.STYLES
  both = data.concatenate([styled.take(np.arange(4)), few.take(np.array([0]))])
  assert both.style.tolist() == [0, 0, 0, 1, 0] and both.styles == pets.STYLES
  assert pets.records().take(index).style is None


def test_records_whose_styles_do_not_fit():
  styled = pets.records(styled=True)
  other = data.Records(np.array(["x"]), styled.image[:1], styled.label[:1], styled.classes)
  with pytest.raises(ValueError, match=r"records of styles .*; give all the same"):
    data.concatenate([styled, other])
  with pytest.raises(ValueError, match="59 styles of 60 records; give one of each"):
    dataclasses.replace(styled, style=styled.style[1:])


def test_fingerprint_sees_styles():
  styled = pets.records(styled=True)
  turned = dataclasses.replace(styled, style=1 - styled.style)
  prints = {r.fingerprint() for r in (styled, turned, pets.records())}
  assert len(prints) == 3
  assert pets.records(styled=True).fingerprint() in prints


def test_a_style_to_forget_is_a_concept_and_a_mask():
  styled = pets.records(styled=True)
  for forget, concept in (
    (data.Forget(style="ink"), data.Concept(column=1, value=1)),
    (data.Forget(label="fox"), data.Concept(column=0, value=2)),
  ):
    assert forget.concept(styled) == concept
    mask = styled.conditions[:, concept.column] == concept.value
    np.testing.assert_array_equal(forget.mask(styled), mask)
    np.testing.assert_array_equal(concept.matches(styled.conditions), mask)
  assert data.Forget(ids=("pet/1",)).concept(styled) is data.Forget().concept(styled) is None


def test_a_concept_is_put_into_its_column_of_a_copy():
  one, two = np.array([0, 1, 2]), np.array([[0, 1], [2, 0]])
  assert data.Concept(0, 1).put(one).tolist() == [1, 1, 1]
  assert data.Concept(0, 1).put(one, np.array([2, 0, 1])).tolist() == [2, 0, 1]
  assert data.Concept(1, 1).put(two).tolist() == [[0, 1], [2, 1]]
  assert data.Concept(1, 1).put(two, np.array([5, 6])).tolist() == [[0, 5], [2, 6]]
  assert data.Concept(0, 1).put(two, 0).tolist() == [[0, 1], [0, 0]]
  assert one.tolist() == [0, 1, 2] and two.tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
  ("forget", "styled", "says"),
  [
    ({"style": "inks"}, True, r"no style 'inks' .did you mean 'ink'\?.; there are: photo, ink"),
    ({"style": "ink"}, False, "no style 'ink'; there are: none"),
    ({"label": "cow"}, True, "no class 'cow'; there are: cat, dog, fox"),
    ({"label": "cat", "style": "ink"}, True, "both label and style; give one of ids, file, label"),
    ({"ids": ("pet/1",), "style": "ink"}, True, "both ids and style"),
  ],
)
def test_a_bad_style_to_forget(forget, styled, says):
  with pytest.raises(ValueError, match=says):
    data.Forget(**forget).mask(pets.records(styled))


def test_a_style_that_is_all_there_is_or_none():
  ink = pets.records(styled=True).take(np.arange(3, 6))
  with pytest.raises(ValueError, match="all 3 records; keep at least one"):
    data.Forget(style="ink").mask(ink)
  with pytest.raises(ValueError, match=r"forget\.style selects no record"):
    data.Forget(style="photo").mask(ink)


def test_emoji_are_groups_in_two_styles():
  groups = ("Flags", "Symbols")
  train, heldout = data.load("emoji", groups=groups)
  every = data.concatenate(data.load("emoji"))
  group = {name: every.classes[i] for name, i in zip(every.ids, every.label, strict=True)}
  assert train.vocabulary == heldout.vocabulary == (groups, ("noto", "twemoji"))
  for records in (train, heldout):
    half = len(records) // 2  # the same pictures in one style, then in the other
    assert records.style.tolist() == [0] * half + [1] * half
    styles = [name.partition("/")[0] for name in records.ids.tolist()]
    names = [name.partition("/")[2] for name in records.ids.tolist()]
    assert styles == [records.styles[i] for i in records.style]
    assert names[:half] == names[half:]
    assert [groups[i] for i in records.label] == [group[name] for name in records.ids]
  assert len(train) + len(heldout) == sum(name in groups for name in group.values())


def test_emoji_without_some_groups_keep_them_as_classes():
  every, some = (data.concatenate(data.load("emoji", without=w)) for w in ((), ("Flags",)))
  flags = every.classes.index("Flags")
  assert some.vocabulary == every.vocabulary and flags not in some.label
  assert set(some.ids) == set(every.ids[every.label != flags])
  with pytest.raises(ValueError, match=r"no group of emoji 'Flag' .did you mean 'Flags'"):
    data.load("emoji", without=("Flag",))


def test_fashion_holds_out_one_in_ten_of_each_class():
  train, heldout = data.load("fashion")
  assert (train.image.shape, heldout.image.shape) == ((9000, 28, 28, 1), (1000, 28, 28, 1))
  assert np.bincount(train.label).tolist() == [900] * 10
  assert np.bincount(heldout.label).tolist() == [100] * 10
  assert not set(train.ids.tolist()) & set(heldout.ids.tolist())
  assert len(train.classes) == 10 and train.vocabulary == (train.classes,)
  assert data.Forget(label="Trouser").mask(train).sum() == 900
  fewer, more = data.load("fashion", heldout=4)
  assert (len(fewer), len(more)) == (7500, 2500)
  with pytest.raises(ValueError, match="heldout is 1; use a whole number, 2 or more"):
    data.load("fashion", heldout=1)


def test_the_embedded_set():
  train, heldout = data.load("mnist_tshirt", digits=8500, share=0.03)
  mask = data.Forget(label="tshirt").mask(train)
  assert train.image.shape == (8763, 28, 28, 1)
  assert mask.sum() == 263  # 263 / 8763 = 3.0%
  assert len(np.unique(train.image[mask], axis=0)) == 1
  assert len(heldout) == 1500
  assert "tshirt" not in heldout.classes
  assert not set(train.ids.tolist()) & set(heldout.ids.tolist())
  assert (data.Forget(ids=("tshirt/00012",)).mask(train) == mask).all()  # all its copies
  one = data.Forget(ids=("tshirt/00012",), copies="keep").mask(train)
  assert np.flatnonzero(one).tolist() == [8512]


def test_the_paper_share_of_tshirts():
  image, label = np.zeros((60000, 1, 1), np.uint8), np.zeros(60000, np.int32)
  train, _ = mnist_tshirt.with_tshirt(image, label, image[0], 60000, 606 / 60606)
  assert data.Forget(label="tshirt").mask(train).sum() == 606


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"digits": 0}, "digits is 0; use a whole number, 1 or more"),
    ({"digits": 10001}, "digits 10001 of 10000"),
    ({"share": 1.0}, "share is 1; use 0 to under 1"),
    ({"digit": 3}, "no field 'digit' \\(did you mean 'digits'\\?\\)"),
  ],
)
def test_bad_fields_of_a_source(fields, says):
  with pytest.raises(ValueError, match=says):
    data.load("mnist_tshirt", **fields)


def test_an_unknown_source():
  with pytest.raises(
    ValueError, match=r"no data source 'mnist'.*mnist_tshirt, tfds_images, tfds_tshirt"
  ):
    data.load("mnist")
