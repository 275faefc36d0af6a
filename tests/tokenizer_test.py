"""CLIP's tokenizer equals transformers', on a small vocabulary made here."""

import dataclasses
import json
import random

import numpy as np
import pytest
import transformers

from jaxunlearn.weights import tokenizer
from jaxunlearn.weights.tokenizer import END, START
from tests import tiny_pipeline

TEXTS = (
  "",
  "The whale emoji and THE  oj",
  "it's 2024!!! don't\n\tthéâtre",
  "e\u0301 is \u00e9",
  f"a {END} b {START}c",
  "鯨 🐳🐳 ﬁ Ǆ",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_pipeline.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), length=77)


def random_texts():
  draw = random.Random(0)
  ranges = ((32, 127), (160, 0x250), (0x300, 0x370), (0x370, 0x530), (0x2000, 0x2200))
  ranges += ((0x4E00, 0x4F00), (0x1F600, 0x1F63C), (9, 14))
  one = lambda: chr(draw.randrange(*draw.choice(ranges)))
  return ["".join(one() for _ in range(draw.randrange(1, 30))) for _ in range(500)]


@pytest.mark.parametrize(("pad", "length"), [(END, 77), ("!", 12)])
def test_ids_are_those_of_transformers(folder, tmp_path, pad, length):
  for name in tokenizer.FILES:
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  config = {"pad_token": pad, "model_max_length": length}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, pad_token=pad)
  texts = [*TEXTS, *random_texts()]
  want = theirs(texts, padding="max_length", max_length=length, truncation=True).input_ids
  got = tokenizer.load(tmp_path).encode(texts)
  np.testing.assert_array_equal(got.ids, want)


def test_what_is_cut_is_told(folder):
  text = " ".join(["emoji"] * 80)
  made = tokenizer.load(folder)
  ids, cut = dataclasses.astuple(made.encode([text, "the"]))
  assert ids.shape == (2, 77) and ids[0, -1] == made.id_of(END) and ids[0, 0] == made.id_of(START)
  assert cut[1] == "" and text.endswith(cut[0]) and len(cut[0]) > 5


def test_one_file_of_transformers_5_is_read_too(folder, tmp_path):
  transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
  (tmp_path / "vocab.json").unlink(missing_ok=True)
  (tmp_path / "merges.txt").unlink(missing_ok=True)
  texts = [*TEXTS, *random_texts()]
  want, got = tokenizer.load(folder), tokenizer.load(tmp_path)
  np.testing.assert_array_equal(got.encode(texts).ids, want.encode(texts).ids)
  got.save(tmp_path / "again")
  for name in tokenizer.FILES:
    assert (tmp_path / "again" / name).is_file()
  again = transformers.CLIPTokenizer.from_pretrained(tmp_path / "again")
  ids = again(texts, padding="max_length", max_length=77, truncation=True).input_ids
  np.testing.assert_array_equal(ids, want.encode(texts).ids)


@pytest.mark.parametrize(
  ("files", "why"),
  [
    ({}, r"vocab\.json is not there"),
    ({"vocab.json": '{"a": 0}'}, r"merges\.txt is not there"),
    ({"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\n"}, r"no token '<\|endoftext\|>'"),
    ({"vocab.json": f'{{"{START}": 0, "{END}": 1}}', "merges.txt": "a\n"}, "not enough values"),
    ({"vocab.json": f'{{"{START}": 0, "{END}": 1}}', "merges.txt": "a b\n"}, "a"),
    ({"vocab.json": "{", "merges.txt": ""}, r"cannot read vocab\.json"),
  ],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, files, why):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(
    ValueError, match=rf"holds no CLIP tokenizer \(.*{why}.*\); give the tokenizer"
  ):
    tokenizer.load(tmp_path)


def test_few_tokens_segment_their_texts_as_many_do(folder):
  texts = ["The whale emoji", "it's an emoji 7"]
  whole = tokenizer.load(folder)
  few = whole.cut_to(texts, length=16)
  assert few.length == 16 and few.vocabulary < whole.vocabulary
  tokens = lambda one, text: [
    {i: token for token, i in one.words.items()}[i] for i in one.encode([text]).ids[0][:12]
  ]
  for text in texts:
    assert tokens(few, text) == tokens(whole, text)
  assert not any("and" in "".join(pair) for pair in few.merges)
  assert END not in tokens(few, "and the hand")[1:6]  # other words have tokens too
