"""Pictures that were cropped or saved again are likened to their records; find.py never guesses."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data
from jaxunlearn.answer import find, likeness
from jaxunlearn.answer.find import Request


@pytest.fixture(scope="module")
def emoji():
  train, heldout = data.load("emoji")
  return train.take(np.arange(0, len(train), 8)), heldout


@pytest.fixture(scope="module")
def digits():
  return data.load("mnist_tshirt", digits=1000, share=0.01)


def saved(pixels, path, quality=0, box=None, size=None):
  image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
  image = image.crop(box) if box else image
  image = image.resize(size) if size else image
  image.save(path, **({"quality": quality} if quality else {}))
  return path


def decoded(path, shape):
  return find._decoded(path.read_bytes(), shape, "bicubic")


@pytest.mark.parametrize(
  ("change", "found"),
  [({"quality": 70}, 10), ({"size": (48, 48)}, 9), ({"box": (0, 0, 22, 22)}, 9)],
)
def test_the_record_comes_first_of_most_pictures_that_were_changed(change, found, emoji, tmp_path):
  """Of 10 emoji: JPEG, another size, and a window of 22 of 32 px."""
  train, _ = emoji
  first = 0
  for i in range(0, 400, 40):
    path = saved(train.image[i], tmp_path / "a.jpg", **change)
    like = likeness.like(decoded(path, train.image.shape[1:]), train)
    first += bool(like) and like[0].place == i
  assert first >= found


def test_a_flat_picture_is_like_nothing(emoji):
  assert likeness.like(np.full((32, 32, 3), 9, np.uint8), emoji[0]) == []


def test_pixels_that_are_equal_are_the_record_and_all_its_copies(digits, tmp_path):
  train, heldout = digits
  path = saved(train.image[-1], tmp_path / "shirt.png")
  found = find.find(Request(pictures=(path,)), train, heldout)
  copies = [name for name in train.ids.tolist() if name.startswith("tshirt/")]
  assert sorted(one.id for one in found) == copies and len(copies) == 10
  assert [one.by for one in found] == [find.BY_PIXELS] + [find.BY_COPY] * 9
  by_id = find.find(Request(ids=("tshirt/00003",)), train, heldout)
  assert [one.by for one in by_id] == [find.BY_NAME] + [find.BY_COPY] * 9


def test_a_likeness_is_listed_and_taken_when_it_is_confirmed(digits, tmp_path):
  train, heldout = digits
  path = saved(train.image[7], tmp_path / "seven.jpg", quality=50)
  with pytest.raises(find.Unclear, match=r"is no record, but is like .*'mnist/00007' \(") as info:
    find.find(Request(pictures=(path,)), train, heldout)
  assert "\n" not in str(info.value)
  candidates = info.value.candidates
  assert candidates[0].id == "mnist/00007" and candidates[0].picture == str(path)
  find.write_candidates(tmp_path, candidates, train)
  lines = (tmp_path / find.LIST).read_text().splitlines()
  assert lines[0] == "picture,id,bits,distance" and len(lines) == 1 + len(candidates)
  with Image.open(tmp_path / find.GRID) as grid:
    assert grid.size[1] == len(candidates) * 29 * 3 - 3
  shirt = saved(train.image[-1], tmp_path / "shirt.jpg", quality=50)
  assert [one.id for one in find.of_picture(shirt, train)[1]] == ["tshirt/00000"]  # of ten copies
  found = find.find(Request(pictures=(path,), confirm=("mnist/00007",)), train, heldout)
  assert found == [find.Found("mnist/00007", find.BY_LIKENESS, str(path))]
  with pytest.raises(
    ValueError, match="--confirm names 'mnist/00500', which no picture of the req"
  ):
    find.find(Request(pictures=(path,), confirm=("mnist/00500",)), train, heldout)


def test_files_of_a_folder_are_found_by_their_digest(tmp_path):
  folder = tmp_path / "pictures" / "a"
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(4):
    saved(rng.integers(0, 256, (40, 40, 3), np.uint8), folder / f"{i}.png")
  section = {"source": "folder", "path": str(folder.parent), "size": 32}
  train, heldout = data.load(**section)
  source = data.make(**section)
  (one,) = find.find(Request(pictures=(folder / "2.png",)), train, heldout, source)
  assert (one.id, one.by) == ("a/2.png", find.BY_FILE)
  with Image.open(folder / "2.png") as image:
    image.save(tmp_path / "again.png", compress_level=1)  # other bytes, the same pixels
  (one,) = find.find(Request(pictures=(tmp_path / "again.png",)), train, heldout, source)
  assert (one.id, one.by) == ("a/2.png", find.BY_PIXELS)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, "the request names nothing; give --ids, --files or --pictures"),
    ({"ids": ("mnist/99999",)}, "1 of 1 ids to forget do not exist, the first is 'mnist/99999'"),
    ({"ids": ("mnist/01000",)}, "'mnist/01000' is held out: this run was not trained on it"),
    ({"files": ("none.txt",)}, "--files 'none.txt' is not a file"),
    ({"pictures": ("none.png",)}, "picture 'none.png' cannot be read (No such file"),
    ({"pictures": ("text.png",)}, "picture 'text.png' cannot be read (not a JPEG, PNG or WebP"),
    ({"pictures": ("noise.png",)}, "picture 'noise.png' is no record of this run, and like none"),
  ],
)
def test_what_is_not_there_is_one_line(fields, message, digits, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "text.png").write_text("text")
  checks = (np.indices((28, 28)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
  saved(checks, tmp_path / "noise.png")
  train, heldout = digits
  paths = {k: tuple(map(tmp_path.__class__, v)) for k, v in fields.items() if k != "ids"}
  with pytest.raises(ValueError) as info:
    find.find(Request(**{**fields, **paths}), train, heldout)
  assert str(info.value).startswith(message) and "\n" not in str(info.value)


def test_data_that_has_no_looks_is_looked_at(emoji):
  """As a folder that was not verified."""

  @dataclasses.dataclass(frozen=True)
  class Unread:
    pixels: np.ndarray

    @property
    def shape(self):
      return self.pixels.shape

    @property
    def folder(self):
      return ""

    def __getitem__(self, index):
      return self.pixels[index]

    def select(self, index):
      return Unread(self.pixels[index])

    def sha256(self, index):
      return ["0" * 64 for _ in index]

    stamps = sha256

    def looks(self, index):
      return None

  train, _ = emoji
  some = train.take(np.arange(50))
  unread = dataclasses.replace(some, image=Unread(some.image))
  raw = io.BytesIO()
  Image.fromarray(some.image[3]).save(raw, "JPEG", quality=70)
  picture = find._decoded(raw.getvalue(), some.image.shape[1:], "bicubic")
  assert likeness.like(picture, unread)[0].place == 3
