"""CLIP's tokenizer equals transformers', on a small vocabulary made here."""

import dataclasses
import json
import random

import numpy as np
import pytest
import transformers

from jaxunlearn.weights import tokenizer
from jaxunlearn.weights.tokenizer import END, START

MERGES = ("t h", "th e</w>", "a n", "an d</w>", "e m", "em o", "o j", "oj i</w>", "w h", "wh a")
TEXTS = (
  "",
  "The whale emoji and THE  oj",
  "it's 2024!!! don't\n\tthéâtre",
  "e\u0301 is \u00e9",
  f"a {END} b {START}c",
  "鯨 🐳🐳 ﬁ Ǆ",
)


def printable():
  """CLIP's characters for the 256 bytes, in its order: those that print, then the others."""
  keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
  shown = {byte: chr(byte) for byte in keep}
  hidden = [byte for byte in range(256) if byte not in shown]
  return [shown[b] for b in keep] + [chr(256 + i) for i in range(len(hidden))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer")
  letters = printable()
  words = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in MERGES)]
  vocabulary = {token: i for i, token in enumerate([*words, START, END])}
  (path / "vocab.json").write_text(json.dumps(vocabulary))
  (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
  return path


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


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
  with pytest.raises(ValueError, match=r"vocab\.json is not there; give the tokenizer folder"):
    tokenizer.load(tmp_path)
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  (tmp_path / "vocab.json").write_text('{"a": 0}')
  with pytest.raises(ValueError, match=r"vocab\.json has no token '<\|endoftext\|>'; give"):
    tokenizer.load(tmp_path)
  (tmp_path / "vocab.json").write_text(json.dumps({START: 0, END: 1}))
  (tmp_path / "merges.txt").write_text("no merge\n")
  with pytest.raises(ValueError, match="holds no CLIP tokenizer"):
    tokenizer.load(tmp_path)
  (tmp_path / "vocab.json").write_text("{")
  with pytest.raises(ValueError, match=r"cannot read .*; fetch it again"):
    tokenizer.load(tmp_path)
