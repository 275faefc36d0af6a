"""A folder of images: order, classes, pixels, modes, what cannot be read, and lazy streams."""

import dataclasses
import hashlib
import io
import os
import pathlib
import re
import struct
import zlib

import grain
import numpy as np
import pytest
from PIL import ExifTags, Image

from jaxunlearn import data, streams
from jaxunlearn.data import folder, walk

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def noise(height=12, width=12, channels=3, seed=0):
  shape = (height, width, channels)[: 2 + (channels > 1)]
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(root, name, image=None, **options):
  """An array or a PIL image as a file of the folder; without one, noise of the name's own."""
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if image is None:
    image = noise(seed=list(name.encode()))
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(path, FORMATS[path.suffix[1:].lower()], **options)
  return path


def load(root, **fields):
  return data.load("folder", path=str(root), **{"size": 8, "threads": 3} | fields)


def pixels(root, **fields):
  """Those of the only file."""
  train, _ = load(root, **fields)
  assert len(train) == 1
  return train.image[np.array([0])][0]


@pytest.fixture
def faces(tmp_path):
  """Nine files of two classes; the bytes of a/2.png and b/7.png are equal."""
  for i in range(9):
    save(tmp_path, f"{'ab'[i > 4]}/{i}.png")
  (tmp_path / "b/7.png").write_bytes((tmp_path / "a/2.png").read_bytes())
  return tmp_path


@pytest.fixture
def opened(monkeypatch):
  """The files that are opened from now on."""
  names, real = [], pathlib.Path.open
  monkeypatch.setattr(
    pathlib.Path, "open", lambda path, *a, **k: names.append(path.name) or real(path, *a, **k)
  )
  return lambda: [name for name in names if name.endswith(".png")]


def test_ids_are_sorted_posix_paths_and_classes_first_folders(tmp_path, monkeypatch):
  names = ["b/x/2.PNG", "a/1.jpg", "a-b/3.webp", "top.JPEG", "B/4.jpeg", "a/10.png", "a/9.png"]
  for name in names:
    save(tmp_path, name)
  (tmp_path / "a/readme.txt").write_text("no image")
  train, heldout = load(tmp_path)
  order = ["B/4.jpeg", "a-b/3.webp", "a/1.jpg", "a/10.png", "a/9.png", "b/x/2.PNG", "top.JPEG"]
  assert train.ids.tolist() == order
  assert train.classes == (".", "B", "a", "a-b", "b")
  assert [train.classes[i] for i in train.label] == ["B", "a-b", "a", "a", "a", "b", "."]
  assert len(heldout) == 0
  assert isinstance(train.image, data.Images)
  assert train.image.shape == (7, 8, 8, 3)
  walk = os.walk
  monkeypatch.setattr(
    os, "walk", lambda *a, **k: reversed([(d, s, f[::-1]) for d, s, f in walk(*a)])
  )
  assert load(tmp_path)[0].ids.tolist() == order


def test_styles_are_first_folders_and_classes_second(tmp_path):
  names = ["rust/dog/1.png", "rust/cat/x/1.png", "photo/dog/1.png", "photo/dog/2.png"]
  for name in names:
    save(tmp_path, name)
  train, heldout = load(tmp_path, layout="style/class", heldout=4)
  assert train.ids.tolist() == ["photo/dog/1.png", "photo/dog/2.png", "rust/cat/x/1.png"]
  assert heldout.ids.tolist() == ["rust/dog/1.png"]
  assert train.vocabulary == heldout.vocabulary == (("cat", "dog"), ("photo", "rust"))
  assert train.conditions.tolist() == [[1, 0], [1, 0], [0, 1]]
  assert heldout.conditions.tolist() == [[1, 1]]
  assert train.conditions.dtype == np.int32
  assert data.Forget(style="rust").mask(train).tolist() == [False, False, True]
  assert data.Forget(label="dog").mask(train).tolist() == [True, True, False]
  assert load(tmp_path)[0].vocabulary == (("photo", "rust"),)
  save(tmp_path, "rust/3.png")
  save(tmp_path, "4.png")
  with pytest.raises(ValueError, match=r"2 of 6 .* no style/class folder, the first is '4\.png'; "):
    load(tmp_path, layout="style/class")


def test_links_to_files_are_read_and_links_to_folders_named(tmp_path, caplog):
  outside = save(tmp_path, "outside/1.png")
  save(tmp_path, "set/a/2.png")
  (tmp_path / "set/a/link.png").symlink_to(outside)
  (tmp_path / "set/circle").symlink_to(tmp_path / "set")
  train, _ = load(tmp_path / "set")
  assert train.ids.tolist() == ["a/2.png", "a/link.png"]
  assert "circle' is a link to a folder and is not entered" in caplog.text


def filters(name):
  """(support, weight) of a resampling filter."""
  return {
    "box": (0.5, lambda x: (x > -0.5) & (x <= 0.5)),
    "bilinear": (1, lambda x: np.maximum(0, 1 - np.abs(x))),
    "bicubic": (2, cubic),
    "lanczos": (3, lambda x: (np.abs(x) < 3) * np.sinc(x) * np.sinc(x / 3)),
  }[name]


def cubic(x, a=-0.5):
  x = np.abs(x)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def resample(image, size, name):
  """[H, ...] float64 -> [size, ...]: each output pixel's filter, widened when it shrinks."""
  support, weight = filters(name)
  scale = len(image) / size
  wide = max(scale, 1)
  at = np.arange(len(image)) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale
  kernel = np.where(np.abs(at) <= support * wide, weight(at / wide), 0.0)
  kernel /= kernel.sum(axis=1, keepdims=True)
  return np.clip(np.floor(np.einsum("oi,i...->o...", kernel, image) + 0.5), 0, 255)


@pytest.mark.parametrize("name", folder.RESIZE)
@pytest.mark.parametrize(("height", "width"), [(31, 50), (50, 31), (5, 7), (8, 8)])
def test_the_centre_square_resized_is_a_computation_in_float64(tmp_path, name, height, width):
  image = noise(height, width)
  save(tmp_path, "1.png", image)
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  square = image[top : top + side, left : left + side].astype(np.float64)
  across = resample(square.swapaxes(0, 1), 8, name).swapaxes(0, 1)
  expected = resample(across, 8, name)
  got = pixels(tmp_path, resize=name)
  assert got.dtype == np.uint8
  assert np.abs(got - expected).max() <= 1  # PIL's weights have 8 to 22 bits
  assert (got != expected).mean() < 0.02


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_its_own_decoder_s_pixels(tmp_path, suffix):
  path = save(tmp_path, f"1.{suffix}", noise(9, 8))
  expected = np.asarray(Image.open(path))[:8]
  np.testing.assert_array_equal(pixels(tmp_path), expected)


TURNED = {
  2: np.fliplr,
  3: lambda x: np.rot90(x, 2),
  4: np.flipud,
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
  8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(tmp_path, orientation):
  image = noise(8, 13)
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = orientation
  save(tmp_path, "1.png", image, exif=exif)
  turned = TURNED[orientation](image)
  top, left = ((length - 8) // 2 for length in turned.shape[:2])
  np.testing.assert_array_equal(pixels(tmp_path), turned[top : top + 8, left : left + 8])


def test_small_images_are_enlarged_and_counted(tmp_path, caplog):
  for i, side in enumerate((8, 7, 5)):
    save(tmp_path, f"{i}.png", noise(side, 20))
  load(tmp_path)
  assert "2 of 3 images are smaller than 8 px and are enlarged, the first is '1.png'" in caplog.text


def palette(**info):
  image = Image.new("P", (8, 8), 1)
  image.putpalette([0, 0, 0, 10, 20, 30])
  image.info.update(info)
  return image


FLAT = {  # suffix, picture, mode as PIL calls it, RGB over white
  "grey": ("png", Image.new("L", (8, 8), 90), "L", (90, 90, 90)),
  "grey jpg": ("jpg", Image.new("L", (8, 8), 90), "L", (90, 90, 90)),
  "bits": ("png", Image.new("1", (8, 8), 1), "1", (255, 255, 255)),
  "clear grey": ("png", Image.new("LA", (8, 8), (90, 0)), "LA", (255, 255, 255)),
  "half": ("png", Image.new("RGBA", (8, 8), (200, 0, 40, 51)), "RGBA", (244, 204, 212)),
  "half webp": ("webp", Image.new("RGBA", (8, 8), (0, 0, 0, 51)), "RGBA", (204, 204, 204)),
  "palette": ("png", palette(), "P", (10, 20, 30)),
  "clear palette": ("png", palette(transparency=1), "P with transparency", (255, 255, 255)),
  "cmyk": ("jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "CMYK", (255, 0, 0)),
  "16 bits": ("png", Image.fromarray(np.full((8, 8), 90 * 257, np.uint16)), "I;16", (90, 90, 90)),
}


@pytest.mark.parametrize("kind", FLAT)
def test_another_mode_is_bad_input_unless_converted(tmp_path, kind):
  suffix, image, mode, colour = FLAT[kind]
  save(tmp_path, f"1.{suffix}", image, lossless=True)
  with pytest.raises(ValueError, match=rf"1 of 1 .*\(mode {re.escape(mode)}.*, not RGB\)"):
    load(tmp_path)
  got = pixels(tmp_path, convert=True).astype(int)
  assert np.abs(got - colour).max() <= (1 if suffix == "jpg" else 0)


def test_a_transparent_colour_is_not_rgb(tmp_path):
  image = np.zeros((8, 8, 3), np.uint8)
  image[:, 4:] = 7
  save(tmp_path, "1.png", image, transparency=(7, 7, 7))
  with pytest.raises(ValueError, match="mode RGB with transparency, not RGB"):
    load(tmp_path)
  expected = np.where(image == 7, 255, 0)
  np.testing.assert_array_equal(pixels(tmp_path, convert=True), expected)


def test_one_channel(tmp_path):
  image = noise(8, 8, 1)
  save(tmp_path / "grey", "1.png", image)
  np.testing.assert_array_equal(pixels(tmp_path / "grey", channels=1)[..., 0], image)
  colours = noise(8, 8)
  save(tmp_path / "rgb", "1.png", colours)
  with pytest.raises(ValueError, match="mode RGB, not L"):
    load(tmp_path / "rgb", channels=1)
  luma = colours @ np.array([0.299, 0.587, 0.114])
  got = pixels(tmp_path / "rgb", channels=1, convert=True)
  assert np.abs(got[..., 0] - luma).max() <= 0.51


def encoded(suffix, **options):
  stream = io.BytesIO()
  Image.fromarray(noise(40, 40)).save(stream, FORMATS.get(suffix, suffix.upper()), **options)
  return stream.getvalue()


def chunk(kind, body):
  return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb():
  header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def flipped():
  raw = bytearray(encoded("png"))
  raw[len(raw) // 2] ^= 0x55
  return bytes(raw)


BROKEN = {
  "half.jpg": (encoded("jpg")[:1500], "truncated"),
  "half.png": (encoded("png")[:2500], "truncated"),
  "half.webp": (encoded("webp")[:500], "decoder"),
  "head.png": (encoded("png")[:20], "Truncated"),
  "flipped.png": (flipped(), "broken data stream"),
  "empty.png": (b"", "not a JPEG, PNG or WebP image"),
  "text.jpg": (b"<html>404 not found</html>", "not a JPEG, PNG or WebP image"),
  "animation.png": (encoded("gif"), "not a JPEG, PNG or WebP image"),
  "bomb.png": (bomb(), "decompression bomb"),
  "exif.png": (encoded("png", exif=b"garbage"), "TIFF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_stops_the_run_or_is_skipped_by_name(faces, name, caplog):
  raw, why = BROKEN[name]
  (faces / "a" / name).write_bytes(raw)
  says = rf"^1 of 10 images in .* cannot be used: 'a/{name}' \(.*{why}.*\); repair or remove"
  with pytest.raises(ValueError, match=says) as error:
    load(faces)
  assert "\n" not in str(error.value)
  assert "config.data.unreadable=skip" in str(error.value)
  train, _ = load(faces, unreadable="skip")
  assert len(train) == 9
  assert f"a/{name}" not in train.ids
  assert re.search(rf"left out: 'a/{name}' \(.*{why}", caplog.text)
  assert "1 of 10 images" in caplog.text
  assert train.image[np.arange(9)].shape == (9, 8, 8, 3)


def test_many_broken_files_are_counted_and_the_first_named(faces):
  for i in range(5):
    (faces / f"a/x{i}.png").write_bytes(b"")
  (faces / "a/lost.png").symlink_to(faces / "nowhere")
  with pytest.raises(ValueError) as error:
    load(faces)
  assert str(error.value).startswith("6 of 15 images")
  assert "'a/lost.png' (No such file or directory), 'a/x0.png'" in str(error.value)
  assert "x1.png' (not a JPEG, PNG or WebP image: it is empty), ...; repair" in str(error.value)
  assert "x2" not in str(error.value)


def test_a_name_that_no_id_file_can_hold(faces, monkeypatch):
  names = ["a/1.png", "a/\udcff.png", "a/two\nlines.png", "a/blank.png "]
  monkeypatch.setattr(walk, "find", lambda root: names)
  with pytest.raises(ValueError, match=r"3 of 4 .*'a/\\udcff\.png' \(.*surrogates") as error:
    load(faces)
  assert str(error.value).count("has a line break, or a blank at an end; rename it") == 2
  assert "\n" not in str(error.value)


def test_without_verify_only_headers_are_read(faces):
  raw, _ = BROKEN["half.png"]
  (faces / "a/half.png").write_bytes(raw)
  save(faces, "a/grey.png", noise(8, 8, 1))
  (faces / "a/empty.png").write_bytes(b"")
  train, _ = load(faces, verify=False, unreadable="skip")
  assert not {"a/grey.png", "a/empty.png"} & set(train.ids.tolist())
  with pytest.raises(ValueError, match=r"half\.png' cannot be read \(.*truncated.*launch again"):
    train.image[np.flatnonzero(train.ids == "a/half.png")]


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"path": ""}, "config.data.path is empty"),
    ({"path": "/nowhere"}, "'/nowhere' is not a folder"),
    ({"size": 0}, "size is 0; use a whole number, 1 or more"),
    ({"threads": 0}, "threads is 0; use a whole number, 1 or more"),
    ({"channels": 4}, "channels is 4; use 3 .RGB. or 1"),
    ({"heldout": 1}, "heldout is 1; use 0 for none, or 2 or more"),
    ({"heldout": 10}, "heldout is 10 and .* has 9 images.*2 to 9"),
    ({"layout": "style"}, r"no layout of a folder 'style'.*; there are: class, style/class"),
    ({"resize": "bicubi"}, r"no resize filter 'bicubi' \(did you mean 'bicubic'\?\)"),
    ({"unreadable": "stopp"}, "'stopp' .did you mean 'stop'"),
    ({"szie": 8}, "no field 'szie' .did you mean 'size'"),
  ],
)
def test_bad_fields(faces, fields, says):
  with pytest.raises(ValueError, match=says):
    data.load("folder", **{"path": str(faces), "size": 8} | fields)


def test_a_folder_with_nothing_to_read(tmp_path, monkeypatch):
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(ValueError, match=r"no image in .* \(1 \.txt\); it takes \.jpg"):
    load(tmp_path)
  with pytest.raises(ValueError, match="is not a folder"):
    load(tmp_path / "notes.txt")
  (tmp_path / "1.png").write_bytes(b"")
  with pytest.raises(ValueError, match=r"none of the 1 images .* is left to train on"):
    load(tmp_path, unreadable="skip")

  def refuse(path):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(os, "scandir", refuse)
  with pytest.raises(ValueError, match=r"cannot be listed \(Permission denied\)"):
    load(tmp_path)


def test_one_file_in_so_many_is_held_out_whatever_is_skipped(faces):
  train, heldout = load(faces, heldout=3)
  assert heldout.ids.tolist() == ["a/2.png", "b/5.png", "b/8.png"]
  assert train.ids.tolist() == ["a/0.png", "a/1.png", "a/3.png", "a/4.png", "b/6.png", "b/7.png"]
  for i in range(5):
    (faces / f"a/{i}.png").write_bytes(b"")
  left, held = load(faces, heldout=3, unreadable="skip")
  assert left.ids.tolist() == ["b/6.png", "b/7.png"]
  assert held.ids.tolist() == ["b/5.png", "b/8.png"]
  assert left.classes == train.classes == ("a", "b")
  assert left.label.tolist() == [1, 1]


def test_forget_by_digest_takes_every_copy_of_the_file(faces):
  train, _ = load(faces)
  digest = hashlib.sha256((faces / "a/2.png").read_bytes()).hexdigest()
  mask = data.Forget(ids=(f"sha256:{digest}",)).mask(train)
  assert train.ids[mask].tolist() == ["a/2.png", "b/7.png"]
  with pytest.raises(ValueError, match="1 of 1 digests"):
    data.Forget(ids=(f"sha256:{'0' * 64}",)).mask(train)


def test_forget_by_name_file_and_class(faces):
  train, _ = load(faces)
  (faces / "ids.txt").write_text("b/6.png\na/0.png\n")
  by_file = data.Forget(file=str(faces / "ids.txt")).mask(train)
  assert train.ids[by_file].tolist() == ["a/0.png", "b/6.png"]
  assert (data.Forget(ids=("a/0.png", "b/6.png")).mask(train) == by_file).all()
  assert data.Forget(label="b").mask(train).tolist() == [False] * 5 + [True] * 4
  with pytest.raises(ValueError, match=r"'a/9\.png' .did you mean 'a/"):
    data.Forget(ids=("a/9.png",)).mask(train)


def test_nothing_is_opened_before_it_is_read(faces, opened):
  train, _ = load(faces)
  assert sorted(opened()) == [f"{i}.png" for i in range(9)]
  before = len(opened())
  few = train.take(np.array([8, 0, 4])).take(np.array([1, 2]))
  assert few.ids.tolist() == ["a/0.png", "a/4.png"]
  assert few.image.shape == (2, 8, 8, 3)
  made = streams.make(few, np.array([True, False]), {"a": "forget"}, 5, seed=0)
  assert len(opened()) == before
  rows = made["a"].at(0)
  assert opened()[before:] == ["0.png"]  # once, for all five places of the batch
  assert rows.image.shape == (5, 8, 8, 3)
  np.testing.assert_array_equal(rows.image, rows.image[:1].repeat(5, axis=0))


def test_rows_come_in_the_order_asked_for(faces):
  train, _ = load(faces)
  index = np.array([5, 0, 8, 0])
  expected = [np.asarray(Image.open(faces / train.ids[i]).resize((8, 8))) for i in index]
  np.testing.assert_array_equal(train.image[index], expected)
  assert train.image[index[:0]].shape == (0, 8, 8, 3)
  np.testing.assert_array_equal(np.concatenate(list(train.chunks(4))), train.image[np.arange(9)])


def test_batches_depend_on_seed_and_step_alone(faces):
  def batches(**fields):
    train, _ = load(faces, **fields)
    mask = data.Forget(ids=("a/3.png",)).mask(train)
    made = streams.make(train, mask, {"x": "retain", "a": "forget"}, 5, seed=3)
    return [made[name].at(step) for name in "xa" for step in (0, 1, 40)]

  first = batches(threads=1)
  for again in (batches(threads=1), batches(threads=7), batches(verify=False)):
    for one, other in zip(first, again, strict=True):
      np.testing.assert_array_equal(one.index, other.index)
      np.testing.assert_array_equal(one.image, other.image)


def unverified(images):
  """The same files, as if their headers alone had been read."""
  return dataclasses.replace(images, source=dataclasses.replace(images.source, verify=False))


def test_a_file_that_vanishes_stops_the_loop_in_one_line(faces):
  train, _ = load(faces)
  stream = streams.make(train, np.zeros(9, bool), {"x": "all"}, 3, seed=0)["x"]
  fine = stream.at(0)
  lost = train.ids[np.setdiff1d(np.arange(9), fine.index)[0]]
  (faces / lost).unlink()
  steps = grain.MapDataset.range(3).map(stream.at)  # as build.Setup.batches reads ahead
  says = rf"{re.escape(lost)}' cannot be read \(No such file or directory\); restore or repair it"
  with pytest.raises(ValueError, match=says) as error:
    list(steps.to_iter_dataset(grain.ReadOptions(num_threads=2)))
  assert "\n" not in str(error.value)
  np.testing.assert_array_equal(stream.at(0).image, fine.image)
  with pytest.raises(ValueError, match=says):
    dataclasses.replace(train, image=unverified(train.image)).sha256()


@pytest.mark.parametrize(
  ("raw", "why"),
  [
    BROKEN["half.png"],
    BROKEN["animation.png"],
    (encoded("png", transparency=(1, 2, 3)), "mode RGB with transparency, not RGB"),
  ],
)
def test_a_file_that_changes_is_checked_again_when_read(faces, raw, why):
  train, _ = load(faces)
  (faces / "a/1.png").write_bytes(raw)
  with pytest.raises(ValueError, match=rf"a/1\.png' cannot be read \(.*{why}"):
    train.image[np.arange(3)]


@pytest.mark.parametrize("verify", [True, False])
def test_digests_are_of_the_bytes_in_the_records_order(faces, verify):
  train, _ = load(faces, verify=verify)
  train = train.take(np.array([8, 2, 0]))
  files = [(faces / name).read_bytes() for name in ("b/8.png", "a/2.png", "a/0.png")]
  assert train.sha256().tolist() == [hashlib.sha256(file).hexdigest() for file in files]


def test_the_fingerprint_sees_names_and_bytes(faces):
  before = load(faces)[0].fingerprint()
  assert load(faces)[0].fingerprint() == before
  save(faces, "a/0.png", noise(seed=99))
  changed = load(faces)[0].fingerprint()
  (faces / "a/0.png").rename(faces / "a/00.png")
  assert len({before, changed, load(faces)[0].fingerprint()}) == 3
