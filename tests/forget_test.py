"""What to delete: ids as people and other systems write them, copies, and what looks alike."""

import dataclasses
import hashlib
import io
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data
from jaxunlearn.data import ids, looks
from tests import pets

IDS = ["cat/0001.png", "cat/0002.png", "dog/0001.png", "cat/a b.png", "café/x.png"]


def picture(seed, size=16):
  """A smooth picture, as photographs are: noise of 4 x 4, enlarged."""
  noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def records(ids=IDS, **fields):
  image = np.stack([np.asarray(picture(i)) for i in range(len(ids))])
  return data.Records(np.array(ids), image, np.zeros(len(ids), np.int32), ("pet",), **fields)


def chosen(of, *ids, **fields):
  return of.ids[data.Forget(ids=ids, **fields).mask(of)].tolist()


@pytest.fixture
def folder(tmp_path):
  """The files IDS, one of them with a name as macOS takes it apart."""
  for i, name in enumerate(IDS):
    path = tmp_path / unicodedata.normalize("NFD", name)
    path.parent.mkdir(exist_ok=True)
    picture(i).save(path)
  return tmp_path


def load(folder, **fields):
  return data.load("folder", path=str(folder), size=16, **fields)[0]


@pytest.mark.parametrize(
  "written",
  [
    "./cat/0001.png",
    "cat//0001.png",
    "cat\\0001.png",
    ".\\cat\\0001.png",
    "dog/../cat/0001.png",
    '"cat/0001.png"',
    "'cat/0001.png'",
  ],
)
def test_a_path_in_other_words(written):
  assert chosen(records(), written) == ["cat/0001.png"]


def test_either_normal_form_of_unicode():
  for own in ("NFC", "NFD"):
    mine = records([unicodedata.normalize(own, name) for name in IDS])
    for form in ("NFC", "NFD"):
      name = unicodedata.normalize(form, IDS[4])
      assert chosen(mine, name) == [mine.ids[4]]


def test_two_names_that_are_one_in_another_form():
  both = records([unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")] + ["x.png"])
  assert chosen(both, both.ids[1]) == [both.ids[1]]
  with pytest.raises(ValueError, match=r"means 2 records.*'e\\u0301\.png'.*name one by its digest"):
    chosen(both, "./" + both.ids[1])


def test_paths_with_the_folder_in_front(folder, monkeypatch):
  mine = load(folder)
  spaced = mine.ids.tolist().index("cat/a b.png")
  monkeypatch.chdir(folder.parent)
  for written in (
    f"{folder}/cat/a b.png",
    f"{folder.name}/cat/a b.png",
    f"file://{folder}/cat/a%20b.png",
  ):
    assert np.flatnonzero(data.Forget(ids=(written,)).mask(mine)).tolist() == [spaced]
  with pytest.raises(ValueError, match="1 of 1 ids to forget do not exist"):
    chosen(mine, f"{folder.parent}/elsewhere/cat/0001.png")


def test_a_digest_in_any_case(folder):
  mine = load(folder)
  digest = hashlib.sha256((folder / "cat/0001.png").read_bytes()).hexdigest()
  for written in (f"sha256:{digest}", f"sha256:{digest.upper()}", f"SHA256:{digest}", digest):
    assert chosen(mine, written) == ["cat/0001.png"]


LIST = "cat/0001.png\r\n\r\ncafé/x.png  \ncat/0001.png\rcat/a b.png"


@pytest.mark.parametrize(
  "raw",
  [
    LIST.encode(),
    LIST.encode("utf-8-sig"),
    LIST.encode("utf-16"),
    b"\xfe\xff" + LIST.encode("utf-16-be"),
    LIST.encode("utf-32"),
  ],
  ids=["utf-8", "utf-8 with a mark", "utf-16", "utf-16-be", "utf-32"],
)
def test_lists_in_any_encoding_with_any_line_end(raw, tmp_path):
  (tmp_path / "ids.txt").write_bytes(raw)
  mask = data.Forget(file=str(tmp_path / "ids.txt")).mask(records())
  assert mask.tolist() == [True, False, False, True, True]


@pytest.mark.parametrize(
  ("raw", "says"),
  [
    (LIST.encode("latin-1"), r"ids\.txt' is not in utf-8 \(.* at byte 19\); save it as UTF-8"),
    ("a.png\n".encode("utf-16-le"), r"ids\.txt' holds zero bytes; save it as UTF-8"),
    (b"\xff\xfea", r"ids\.txt' is not in utf-16 \(truncated data"),
    (b"\xef\xbb\xbf\r\n", r"ids\.txt' is empty"),
    (b"\x89PNG\r\n\x1a\n", r"ids\.txt' is not in utf-8"),
  ],
)
def test_lists_that_are_none(raw, says, tmp_path):
  (tmp_path / "ids.txt").write_bytes(raw)
  with pytest.raises(ValueError, match=f"^forget.file .*{says}") as error:
    data.Forget(file=str(tmp_path / "ids.txt")).mask(records())
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("value", "expected"),
  [("cat/1.png", ("cat/1.png",)), ("", ()), (("",), ()), (["a", "b"], ("a", "b")), ((), ())],
)
def test_ids_of_a_flag(value, expected):
  assert ids.as_ids("forget.ids", value) == expected


@pytest.mark.parametrize(
  ("value", "says"),
  [
    ((10001,), "forget.ids holds 10001, which is a number; write ids in quotes, like ('10001.jpg'"),
    (("a", 1.5), "forget.ids holds 1.5, which is a number"),
    (7, "forget.ids holds 7, which is a number"),
    ((None,), "forget.ids holds None; leave it out, or write ids in quotes"),
    (None, "forget.ids holds None"),
    ((("a",),), "forget.ids holds ('a',), which is a tuple"),
  ],
)
def test_values_that_are_no_ids(value, says):
  with pytest.raises(ValueError, match=re.escape(says)):
    ids.as_ids("forget.ids", value)


def test_bad_fields():
  with pytest.raises(ValueError, match="no way with byte copies 'drop'; there are: forget, keep"):
    data.Forget(copies="drop")
  with pytest.raises(ValueError, match="near is 64; use a whole number, -1 to 63"):
    data.Forget(near=64)


@pytest.mark.parametrize(
  ("written", "says"),
  [
    (("cat/0003.png", "cat/0001.png"), "1 of 2 ids .* 'cat/0003.png' .did you mean 'cat/000"),
    (("CAT/0001.PNG",), "did you mean 'cat/0001.png'"),
    (("cat/0001.png,dog/0001.png",), r"write several ids as \('cat/0001.png', 'dog/0001.png'\)"),
    (("held.png",), r"are not trained on, the first is 'held.png' \(held out"),
    ((".\\held.png",), r"held\.png' \(held out"),
  ],
)
def test_ids_of_no_record(written, says):
  with pytest.raises(ValueError, match=says) as error:
    chosen(records(aside={"held.png": "held out: not trained on"}), *written)
  assert "\n" not in str(error.value)


def test_files_that_are_there_and_not_read(folder):
  (folder / "cat/0009.heic").write_bytes(b"")
  (folder / "cat/0005.png").write_bytes(b"")
  mine = load(folder, unreadable="skip", heldout=3)
  held = data.load("folder", path=str(folder), size=16, unreadable="skip", heldout=3)[1].ids[0]
  for name, says in (
    ("cat/0009.heic", "a file has that name, but it is not read as an image"),
    ("cat/0005.png", r"\(left out: not a JPEG, PNG or WebP image: it is empty\)"),
    (held, r"\(held out: not trained on\)"),
  ):
    with pytest.raises(ValueError, match=says):
      chosen(mine, name)
  left = data.Forget(earlier=("cat/0001.png",)).remaining(mine)
  with pytest.raises(ValueError, match=r"\(deleted earlier: forget\.earlier\)"):
    chosen(left, "cat/0001.png")
  left = data.Forget(later=("cat/0001.png",)).remaining(mine)
  with pytest.raises(ValueError, match=r"\(to be deleted later: forget\.later\)"):
    chosen(left, "cat/0001.png")


# Copies.


def with_copies():
  """The records, and two copies of the first."""
  mine = records([*IDS, "dog/again.png", "dog/once more.png"])
  mine.image[5:] = mine.image[0]
  return mine


def test_byte_copies_are_forgotten_as_well_and_named(caplog):
  copies = ["dog/again.png", "dog/once more.png"]
  assert chosen(with_copies(), "cat/0001.png") == ["cat/0001.png", *copies]
  says = "also forgotten: 2 byte copies of records that config.forget names: 'dog/again.png', "
  assert f"{says}'dog/once more.png'" in caplog.text
  assert "config.forget.copies=keep keeps them" in caplog.text
  left = data.Forget(earlier=("dog/again.png",)).remaining(with_copies())
  assert left.ids.tolist() == IDS[1:]


def test_byte_copies_stay_where_that_is_asked_for(caplog):
  assert chosen(with_copies(), "cat/0001.png", copies="keep") == ["cat/0001.png"]
  assert "kept, as config.forget.copies=keep says: 2 byte copies" in caplog.text


def test_nothing_is_said_where_there_are_no_copies(caplog):
  request = data.Forget(ids=("cat/0001.png",))
  mask = request.mask(records())
  request.warn_of_likes(records(), mask)
  assert mask.sum() == 1 and caplog.text == ""


@pytest.mark.parametrize("verify", [True, False])
def test_byte_copies_of_files(folder, verify, caplog):
  """Of the same size, and the same bytes: files of one size alone are no copies."""
  raw = (folder / "cat/0001.png").read_bytes()
  (folder / "dog/copy.png").write_bytes(raw)
  (folder / "dog/other.png").write_bytes(raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:])
  assert (folder / "dog/other.png").stat().st_size == len(raw)
  mine = load(folder, verify=verify)
  assert chosen(mine, "cat/0001.png") == ["cat/0001.png", "dog/copy.png"]


def test_a_class_whose_pictures_are_in_another_one_too(caplog):
  mine = pets.records()
  image = mine.image.copy()
  image[1] = image[0]  # a dog is the first cat
  mine = dataclasses.replace(mine, image=image)
  request = data.Forget(label="cat")
  mask = request.mask(mine)
  assert not mask[1]
  request.warn_of_likes(mine, mask)
  assert "kept: 1 byte copy of pictures of the class cat: 'pet/1'" in caplog.text


# Looks.


def saved(image, kind="JPEG", **options):
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return Image.open(stream)


NEAR = {
  "the same": lambda image: image,
  "jpeg": lambda image: saved(image, quality=75),
  "smaller": lambda image: image.resize((24, 24), Image.Resampling.LANCZOS),
  "darker": lambda image: image.point(lambda value: 0.8 * value),
  "grey": lambda image: image.convert("L").convert("RGB"),
}


def look(image):
  return looks.looks(np.asarray(image)[None])


def distance(a, b):
  return int(np.bitwise_count(look(a) ^ look(b))[0])


@pytest.mark.parametrize("change", NEAR)
def test_a_picture_looks_like_itself_saved_again(change):
  assert max(distance(picture(i, 64), NEAR[change](picture(i, 64))) for i in range(20)) <= 6


def test_other_pictures_differ_in_half_of_the_bits():
  found = [distance(picture(i), picture(j)) for i in range(20) for j in range(i)]
  assert min(found) > 8
  assert abs(np.mean(found) - 31.5) < 3


def test_a_look_is_the_signs_of_the_lowest_frequencies():
  """A cosine of frequency (2, 3) has one coefficient, and so one bit."""
  x, y = np.meshgrid(np.arange(32), np.arange(32))
  wave = np.cos(np.pi * 3 * (2 * x + 1) / 64) * np.cos(np.pi * 2 * (2 * y + 1) / 64)
  grey = np.rint(128 + 100 * wave).astype(np.uint8)[None, ..., None]
  bits = int(looks.looks(grey)[0])
  assert bits >> (2 * 8 + 3 - 1) & 1  # the mean has no bit
  inverted = int(looks.looks(255 - grey)[0])
  assert not inverted >> (2 * 8 + 3 - 1) & 1


def test_pictures_of_one_colour_look_like_nothing():
  plain = np.broadcast_to(np.array([0, 0, 200], np.uint8)[:, None, None, None], (3, 8, 8, 1))
  assert looks.looks(plain).tolist() == [int(looks.FLAT)] * 3
  assert looks.near(looks.looks(plain), np.array([True, False, False]), 63) == []


def test_near_copies_that_stay_are_named(folder, caplog):
  saved(picture(0, 64), quality=75).save(folder / "dog/again.jpg")
  for verify, named in ((True, True), (False, False)):  # headers alone show no look
    caplog.clear()
    mine = load(folder, verify=verify)
    request = data.Forget(ids=("cat/0001.png",))
    request.warn_of_likes(mine, request.mask(mine))
    said = "1 kept image looks like one to forget: 'dog/again.jpg' (like 'cat/0001.png', "
    assert (said in caplog.text) == named
  assert "add them to config.forget.ids" not in caplog.text
  mine = load(folder)
  for quiet in (data.Forget(ids=("cat/0001.png",), near=-1), data.Forget()):
    caplog.clear()
    quiet.warn_of_likes(mine, quiet.mask(mine))
    assert caplog.text == ""


def test_pixels_in_memory_have_looks_too(caplog):
  mine = records()
  mine.image[2] = np.asarray(picture(0).point(lambda value: 0.9 * value))
  request = data.Forget(ids=("cat/0001.png",))
  request.warn_of_likes(mine, request.mask(mine))
  assert "'dog/0001.png' (like 'cat/0001.png'" in caplog.text
