"""Pictures with captions: in a list, or beside each; and what is missing is named."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data

TEXTS = {"a/1.png": "a red  square", "a/2.png": "a square", "b/1.png": "a red square"}


@pytest.fixture
def root(tmp_path):
  for i, name in enumerate(TEXTS):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(path)
  return tmp_path


def jsonl(path, texts=TEXTS):
  lines = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
  path.write_text("\n".join([*lines, ""]))


def csv(path, texts=TEXTS, column="text"):
  path.write_text(f"file_name,{column}\n" + "".join(f"{k},{v}\n" for k, v in texts.items()))


def beside(path, texts=TEXTS):
  for name, text in texts.items():
    (path.parent / name).with_suffix(".txt").write_text(text + "\n")


@pytest.mark.parametrize(
  ("write", "name"), [(jsonl, "metadata.jsonl"), (csv, "metadata.csv"), (beside, "")]
)
def test_captions_are_conditions_by_number(root, write, name):
  write(root / (name or "x"))
  records, heldout = data.load("captions", path=str(root), size=8)
  assert records.classes == ("a red square", "a square") and not len(heldout)
  assert dict(zip(records.ids.tolist(), records.label.tolist(), strict=True)) == {
    "a/1.png": 0,
    "a/2.png": 1,
    "b/1.png": 0,
  }
  assert records.conditions.tolist() == [0, 1, 0]


def test_a_list_elsewhere_with_a_column_of_its_own(root, tmp_path_factory):
  path = tmp_path_factory.mktemp("list") / "prompts.csv"
  csv(path, column="prompt")
  load = lambda **fields: data.load("captions", path=str(root), size=8, file=str(path), **fields)
  assert load(column="prompt")[0].classes == ("a red square", "a square")
  with pytest.raises(ValueError, match=r"line 2: file_name is 'a/1.png' and text None; give text"):
    load()


def test_held_out_pictures_share_the_numbers(root):
  jsonl(root / "metadata.jsonl", TEXTS | {"b/1.png": "another"})
  records, heldout = data.load("captions", path=str(root), size=8, heldout=3)
  assert heldout.ids.tolist() == ["b/1.png"]
  assert records.classes == heldout.classes == ("a red square", "a square", "another")
  assert heldout.label.tolist() == [2]


def test_pictures_without_a_caption_are_counted_and_named(root):
  jsonl(root / "metadata.jsonl", {"a/1.png": "x", "a/2.png": " "})
  with pytest.raises(ValueError, match=r"2 of 3 pictures in .* have no caption: .*a/2\.png.*b/1"):
    data.load("captions", path=str(root), size=8)


def test_captions_of_no_picture_are_told(root, caplog):
  jsonl(root / "metadata.jsonl", TEXTS | {"gone.png": "x"})
  data.load("captions", path=str(root), size=8)
  assert "captions of pictures that are not there" in caplog.text and "gone.png" in caplog.text


@pytest.mark.parametrize(
  ("name", "text", "error"),
  [
    ("metadata.jsonl", '{"file_name": "a/1.png", "text": 3}\n', "line 1: file_name is 'a/1.png'"),
    ("metadata.jsonl", "{\n", r"cannot read the captions in .*metadata\.jsonl .*; give \.jsonl or"),
    ("metadata.csv", "file_name,text\na/1.png,x\na/1.png,y\n", "line 3: 'a/1.png' is there twice"),
  ],
)
def test_a_list_that_cannot_be_read_is_refused(root, name, text, error):
  (root / name).write_text(text)
  with pytest.raises(ValueError, match=error):
    data.load("captions", path=str(root), size=8)


def test_a_list_that_is_not_there_is_refused(root):
  with pytest.raises(ValueError, match=r"cannot read the captions in no\.csv"):
    data.load("captions", path=str(root), size=8, file="no.csv")
