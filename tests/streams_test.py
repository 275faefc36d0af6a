"""What each stream takes, which conditions its rows get, and the streams that are refused."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from jaxunlearn import data, streams
from jaxunlearn.diffusion import NULL
from tests import pets

N = 60
DOG, INK = data.Forget(label="dog"), data.Forget(style="ink")


def make(takes, forget=DOG, styled=False, batch=8, seed=0, conditional=True):
  records = pets.records(styled)
  concept = forget.concept(records) if conditional else None
  return streams.make(records, forget.mask(records), takes, batch, seed, concept, conditional)


def one(what, **options):
  return make({"x": what}, **options)["x"]


def everything(stream):
  """All rows of a stream, in order."""
  parts = list(stream.chunks(7))
  join = lambda name: np.concatenate([getattr(part, name) for part in parts])
  return {name: join(name) for name in parts[0]._fields if getattr(parts[0], name) is not None}


def write_samples(folder, c, shape=(4, 4, 1)):
  image = np.random.default_rng(0).integers(0, 256, (len(c), *shape), dtype=np.uint8)
  np.savez(folder / streams.SAMPLES, image=image, c=np.array(c, np.int32))
  return image


# What is taken.


@pytest.mark.parametrize(
  ("take", "forget", "wanted"),
  [
    ("all", {"label": "dog"}, lambda label, style: True),
    ("retain", {"label": "dog"}, lambda label, style: label != 1),
    ("forget", {"label": "dog"}, lambda label, style: label == 1),
    ("forget", {"style": "ink"}, lambda label, style: style == 1),
    ("class:fox", {"label": "dog"}, lambda label, style: label == 2),
    ("class:fox", {"style": "ink"}, lambda label, style: label == 2 and style == 0),
    ("style:ink", {"label": "dog"}, lambda label, style: label != 1 and style == 1),
    ("style:photo", {"style": "ink"}, lambda label, style: style == 0),
  ],
)
def test_a_stream_has_the_records_it_names(take, forget, wanted):
  records = pets.records(styled=True)
  rows = everything(one(take, forget=data.Forget(**forget), styled=True))
  places = [i for i, c in enumerate(records.conditions) if wanted(*c)]
  assert rows["index"].tolist() == places
  np.testing.assert_array_equal(rows["image"], data.to_model(records.image[places]))
  np.testing.assert_array_equal(rows["c"], records.conditions[places])


def test_single_records_to_forget_have_no_concept():
  forget = data.Forget(ids=("pet/5", "pet/7"))
  made = make({"x": "retain", "a": "forget", "alt": "class:fox"}, forget)
  assert everything(made["a"])["index"].tolist() == [5, 7]
  assert not {5, 7} & set(everything(made["x"])["index"].tolist())
  assert everything(made["alt"])["index"].tolist() == [i for i in range(2, N, 3) if i != 5]


def test_samples_of_another_run_come_without_the_concept(tmp_path):
  c = [0, 1, 2, 1, 0]
  image = write_samples(tmp_path, c)
  rows = everything(one(f"samples:{tmp_path}"))
  assert rows["c"].tolist() == [0, 2, 0]
  np.testing.assert_array_equal(rows["image"], data.to_model(image[[0, 2, 4]]))
  rows = everything(one(f"samples:{tmp_path}", forget=data.Forget()))
  assert rows["c"].tolist() == c


def test_all_samples_of_another_run_are_of_the_concept_too(tmp_path):
  write_samples(tmp_path, [0, 1, 2, 1, 0])
  assert everything(one(f"all_samples:{tmp_path}"))["c"].tolist() == [0, 1, 2, 1, 0]


def test_samples_with_two_conditions(tmp_path):
  write_samples(tmp_path, list(itertools.product(range(3), range(2))))
  rows = everything(one(f"samples:{tmp_path}", forget=INK, styled=True))
  assert rows["c"].tolist() == [[0, 0], [1, 0], [2, 0]]


@pytest.fixture
def other_source(monkeypatch):
  """Makes `data:other` the given records."""
  return lambda records: monkeypatch.setattr(data, "load", lambda name: (records, records))


def test_another_source_is_told_a_kept_condition_or_none(other_source):
  digits = dataclasses.replace(pets.records(), classes=tuple("012"), ids=np.arange(N).astype(str))
  other_source(digits)
  rows = everything(one({"take": "data:other", "c": "kept"}))
  assert rows["index"].tolist() == list(range(N))
  assert set(rows["c"].tolist()) == {0, 2}
  rows = everything(one({"take": "data:other", "c": "kept"}, styled=True))
  assert {tuple(c) for c in rows["c"]} == {(0, 0), (0, 1), (2, 0), (2, 1)}
  rows = everything(one({"take": "data:other", "c": "null"}, styled=True))
  assert (rows["c"] == NULL).all() and rows["c"].shape == (N, 2)
  assert set(everything(one({"take": "data:other", "c": "forget"}))["c"].tolist()) == {1}
  assert everything(one("data:other", conditional=False))["index"].tolist() == list(range(N))


@pytest.mark.parametrize(("c", "styled"), [("own", False), ("own", True), ("forget", True)])
def test_another_sources_classes_are_not_this_models(other_source, c, styled):
  digits = dataclasses.replace(pets.records(), classes=tuple("012"), ids=np.arange(N).astype(str))
  other_source(digits)
  with pytest.raises(ValueError, match="classes are not this model's; set its c to kept or null"):
    one({"take": "data:other", "c": c}, styled=styled)


def test_the_same_source_once_more_comes_without_the_records_to_forget(other_source):
  other_source(pets.records())
  rows = everything(one("data:other"))
  assert rows["index"].tolist() == [i for i in range(N) if i % 3 != 1]


# The first M.


def test_the_first_few_are_fixed_by_the_seed_and_nested():
  of = lambda first, seed=0: one({"take": "retain", "first": first}, seed=seed).index
  few, more = of(5), of(12)
  assert len(few) == 5 and len(np.unique(few)) == 5 and (np.diff(few) > 0).all()
  assert set(few) < set(more) < set(of(0))
  np.testing.assert_array_equal(of(5), few)
  assert set(of(5, seed=1)) != set(few)
  np.testing.assert_array_equal(of(1000), of(0))
  made = make({name: {"take": "retain", "first": 5} for name in ("x", "alt")})
  assert set(made["x"].index) != set(made["alt"].index)


def test_the_first_few_are_seen_again_and_again():
  stream = one({"take": "forget", "first": 2}, batch=6)
  assert np.bincount(stream.at(3).index)[stream.index].tolist() == [3, 3]


# Conditions.


@pytest.mark.parametrize("styled", [False, True])
def test_an_unconditional_model_is_told_nothing(styled):
  rows = one("retain", styled=styled, conditional=False).at(0)
  assert rows.c is None and rows.to is None


def test_conditions_of_one():
  assert everything(one({"take": "retain", "c": "forget"}))["c"].tolist() == [1] * 40
  assert everything(one({"take": "all", "c": "null"}))["c"].tolist() == [NULL] * N
  kept = everything(one({"take": "forget", "c": "kept"}))["c"]
  assert kept.dtype == np.int32 and set(kept.tolist()) == {0, 2}


def test_conditions_of_two():
  records = pets.records(styled=True)
  alt = everything(one({"take": "retain", "c": "forget"}, forget=INK, styled=True))
  assert (alt["c"][:, 1] == 1).all()
  np.testing.assert_array_equal(alt["c"][:, 0], records.label[alt["index"]])
  null = everything(one({"take": "all", "c": "null"}, forget=INK, styled=True))["c"]
  assert (null == NULL).all() and null.shape == (N, 2)
  kept = everything(one({"take": "all", "c": "kept"}, forget=INK, styled=True))["c"]
  assert {tuple(c) for c in kept} == {(0, 0), (1, 0), (2, 0)}
  assert {null.dtype, kept.dtype, alt["c"].dtype} == {np.dtype(np.int32)}


def test_kept_conditions_are_uniform():
  concept = data.Concept(0, 2)
  c = streams.kept((5, 3), concept, np.random.default_rng(0), 12_000)
  counts = np.zeros((5, 3), int)
  np.add.at(counts, tuple(c.T), 1)
  assert (counts[2] == 0).all()
  np.testing.assert_allclose(np.delete(counts, 2, axis=0), 1000, atol=5 * 1000**0.5)
  assert set(streams.kept((2,), None, np.random.default_rng(0), 50).ravel()) == {0, 1}


def test_what_one_condition_maps_to():
  of = lambda to: everything(one({"take": "forget", "to": to}))
  assert set(of("next")["to"].tolist()) == {2}
  assert set(of("random")["to"].tolist()) == {0, 2}
  assert set(of("null")["to"].tolist()) == {NULL}
  assert set(of("next")["c"].tolist()) == {1}
  assert "to" not in of("")
  around = {"forget": data.Forget(label="fox")}
  assert set(everything(one({"take": "forget", "to": "next"}, **around))["to"].tolist()) == {0}


def test_what_two_conditions_map_to():
  of = lambda to: everything(one({"take": "forget", "to": to}, forget=INK, styled=True))
  for to in ("next", "random"):  # of two styles there is one other
    rows = of(to)
    np.testing.assert_array_equal(rows["to"][:, 0], rows["c"][:, 0])
    assert (rows["c"][:, 1] == 1).all() and (rows["to"][:, 1] == 0).all()
  assert (of("null")["to"] == NULL).all()


# A pure function of (seed, step).

RICH = {"take": "retain", "c": "kept", "to": "random", "first": 30}


def test_rows_are_a_function_of_seed_and_step():
  once, again, other = one(RICH), one(RICH), one(RICH, seed=1)
  later = once.at(5)
  for step in (0, 5, 1000):
    for a, b in zip(once.at(step), again.at(step), strict=True):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(once.at(5).c, later.c)
  of = lambda stream, name: np.stack([getattr(stream.at(step), name) for step in range(20)])
  for name in ("c", "to", "index"):
    assert len(np.unique(of(once, name), axis=0)) == 20
    assert not np.array_equal(of(once, name), of(other, name))


def test_picks_are_some_of_the_records_fixed_by_their_seed():
  stream = one(RICH)
  rows = stream.pick(10, 3)
  assert len(np.unique(rows.index)) == 10 and set(rows.index) <= set(stream.index)
  for a, b in zip(rows, one(RICH).pick(10, 3), strict=True):
    np.testing.assert_array_equal(a, b)
  assert set(stream.pick(10, 4).index) != set(rows.index)
  assert set(stream.pick(99, 0).index) == set(stream.index)


def test_no_two_uses_share_a_generator():
  """SeedSequence pads with zeros: (a, b) and (a, b, 0) are one seed."""
  used = []
  real = np.random.default_rng

  def spy(seed):
    padded = (*seed, *[0] * (6 - len(seed)))
    used.append(padded)
    return real(seed)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(np.random, "default_rng", spy)
    stream = one(RICH)
    for step in range(4 * 8):
      stream.at(step)
  # A permutation is drawn again by each batch of its epoch, the rest once.
  rest = [seed for seed in used if seed[3:] != (0, 0, 0)]
  epochs = {seed for seed in used if seed[3:] == (0, 0, 0)}
  assert len(set(rest)) == len(rest) == 1 + 4 * 8
  assert {seed[2] for seed in epochs} == set(range(-(-4 * 8 * 8 // 30)))


# What is refused.


@pytest.mark.parametrize(
  ("takes", "says"),
  [
    ("class:cow", "no class 'cow'; there are: cat, dog, fox"),
    ("class:foxx", "no class 'foxx' (did you mean 'fox'?)"),
    ("style:ink", "no style 'ink'; there are: none"),
    ("class:dog", "'x' is the class:dog set, which is empty; name one with records"),
    ("data:pets", "no data source 'pets'"),
    ({"take": "classes:fox"}, "no subset 'classes:fox'"),
    ({"take": "retain", "c": "forgotten"}, "no condition of a stream 'forgotten'"),
    ({"take": "retain", "to": "previous"}, "no condition to map to 'previous'"),
    ({"take": "retain", "first": -1}, "first is -1; use a whole number, 0 or more"),
    ({"take": "retain", "frist": 3}, "stream has no field 'frist' (did you mean 'first'?)"),
    ({"take": "forget", "c": "forget"}, "'x' shows 20 records to forget under the condition"),
    ({"take": "all", "c": "forget"}, "'x' shows 20 records to forget under the condition"),
    ("samples:/nowhere", "/nowhere/samples.npz does not exist; name a finished run"),
  ],
)
def test_streams_that_are_refused(takes, says):
  with pytest.raises(ValueError, match=re.escape(says)) as error:
    one(takes)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "take", [{"c": "forget"}, {"c": "kept"}, {"to": "next"}, {"to": "null"}, {"to": "random"}]
)
@pytest.mark.parametrize("conditional", [False, True])
def test_conditions_ask_for_a_conditional_model_and_a_concept(take, conditional):
  forget = data.Forget(ids=("pet/3",)) if conditional else DOG
  with pytest.raises(ValueError, match=r"stream 'x' asks for conditions .*config\.forget\.label"):
    one({"take": "retain", **take}, forget=forget, conditional=conditional)


@pytest.mark.parametrize(
  ("c", "shape"), [([0, 1], (5, 5, 1)), ([0, 1], (4, 4, 3)), ([[0, 0], [1, 1]], (4, 4, 1))]
)
def test_samples_of_another_shape_or_of_other_conditions(tmp_path, c, shape):
  write_samples(tmp_path, c, shape)
  with pytest.raises(ValueError, match=r"and this config's data .* name a run on the same data"):
    one(f"samples:{tmp_path}")


def test_samples_of_the_concept_alone_are_none(tmp_path):
  write_samples(tmp_path, [1, 1])
  with pytest.raises(ValueError, match=r"set, which is empty; name one with records"):
    one(f"samples:{tmp_path}")


def test_another_source_of_another_size(other_source):
  image = np.zeros((N, 5, 5, 1), np.uint8)
  other_source(dataclasses.replace(pets.records(), image=image))
  with pytest.raises(ValueError, match="mixed sizes"):
    one("data:other")


# Attacks.


def attack(name, takes):
  records = pets.records()
  mask = DOG.mask(records)
  made = streams.make(records, mask, takes, 8, 0, DOG.concept(records), conditional=True)
  streams.check_attack(name, made, records, mask)


@pytest.mark.parametrize(
  ("name", "takes"),
  [
    ("", {"x": "all"}),
    ("dimra", {"x": "retain"}),
    ("dimra", {"x": "class:fox"}),
    ("dimra", {"x": {"take": "data:other", "c": "kept"}}),
    ("few_shot", {"x": "forget"}),
    ("few_shot", {"x": {"take": "forget", "first": 1}}),
    ("inversion", {"a": {"take": "forget", "to": "next"}}),
  ],
)
def test_attacks_see_what_their_name_says(name, takes, other_source):
  other_source(pets.records())
  attack(name, takes)


def test_dimra_on_samples_without_the_concept(tmp_path):
  write_samples(tmp_path, [0, 1, 2])
  attack("dimra", {"x": f"samples:{tmp_path}"})


def test_no_dimra_on_samples_with_the_concept(tmp_path):
  write_samples(tmp_path, [0, 1, 2])
  with pytest.raises(ValueError, match="stream 'x' has 1 records of it"):
    attack("dimra", {"x": f"all_samples:{tmp_path}"})


@pytest.mark.parametrize(
  ("name", "takes", "says"),
  [
    ("dimra", {"x": "all"}, "stream 'x' has 20 records of it; take retain"),
    ("dimra", {"x": "retain", "a": "forget"}, "stream 'a' has 20 records of it"),
    ("dimra", {"x": {"take": "forget", "first": 1}}, "stream 'x' has 1 records of it"),
    ("few_shot", {"x": "retain"}, "stream 'x' has none; take forget"),
    ("inversion", {"a": "class:fox"}, "stream 'a' has none; take forget"),
    ("few_shots", {"x": "forget"}, "no attack 'few_shots' (did you mean 'few_shot'?)"),
  ],
)
def test_attacks_that_do_not(name, takes, says):
  with pytest.raises(ValueError, match=re.escape(says)) as error:
    attack(name, takes)
  assert "\n" not in str(error.value)
