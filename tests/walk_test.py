"""Which files of a folder are read, and what is said of the others."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data
from jaxunlearn.data import walk


@pytest.fixture
def folder(tmp_path):
  """A function that makes files, of a byte each, in a folder that has a picture."""

  def make(*names):
    for name in names:
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(b"x")
    return tmp_path

  return lambda *names: make("cat/1.png", *names)


def test_every_suffix_of_the_formats_is_read(folder):
  names = [f"a{suffix}" for suffix in (".jpg", ".jpeg", ".jpe", ".JFIF", ".png", ".apng", ".WebP")]
  assert walk.find(folder(*names)) == sorted([*names, "cat/1.png"])


UNREAD = {
  "cat/.ipynb_checkpoints/1-checkpoint.png": "hidden or system folders",
  ".Trash-1000/files/9.png": "hidden or system folders",
  ".thumbnails/deep/er/9.png": "hidden or system folders",
  "$RECYCLE.BIN/S-1-5/9.png": "hidden or system folders",
  "__MACOSX/cat/9.png": "hidden or system folders",
  "cat/@eaDir/1.png/SYNOPHOTO.jpg": "hidden or system folders",
  "System Volume Information/9.png": "hidden or system folders",
  "lost+found/9.png": "hidden or system folders",
  "cat/._1.png": "hidden image",
  ".hidden.png": "hidden image",
}


@pytest.mark.parametrize("name", UNREAD)
def test_hidden_and_system_files_are_named_and_not_read(folder, name, caplog):
  assert walk.find(folder(name)) == ["cat/1.png"]
  lines = [r.message for r in caplog.records if r.levelname == "WARNING"]
  assert (
    len(lines) == 1 and f"1 {'image in ' * ('folders' in UNREAD[name])}{UNREAD[name]}" in (lines[0])
  )


def test_hidden_folders_without_pictures_are_not_spoken_of(folder, caplog):
  walk.find(folder(".git/config", ".cache/x.json", "lost+found/x", ".DS_Store", "cat/._note.txt"))
  assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_folder_that_is_hidden_itself_is_read(tmp_path):
  (tmp_path / ".cache/pictures").mkdir(parents=True)
  (tmp_path / ".cache/pictures/1.png").write_bytes(b"")
  assert walk.find(tmp_path / ".cache/pictures") == ["1.png"]


def run_at(path):
  path.mkdir(parents=True, exist_ok=True)
  config = {name: {} for name in ("method", "streams", "data", "train", "model")}
  (path / "config.json").write_text(json.dumps(config))


def test_what_runs_wrote_below_is_not_read(folder, caplog):
  root = folder("runs/a/samples/target.png", "runs/a/samples/after.png", "runs/own.png")
  run_at(root / "runs/a")
  assert walk.find(root) == ["cat/1.png", "runs/own.png"]
  assert "2 images in working directories of runs are not read: 'runs/a' (2); use a --w" in (
    caplog.text
  )


def test_a_run_in_the_folder_itself(folder):
  root = folder("samples/target.png", "evals/x.png", "own.png")
  assert "samples/target.png" in walk.find(root)
  run_at(root)
  assert walk.find(root) == ["cat/1.png", "own.png"]


@pytest.mark.parametrize("text", ['{"_class_name": "UNet2DModel"}', "[1]", "{", "\0"])
def test_another_config_is_no_run(folder, text):
  root = folder("set/1.png")
  (root / "set/config.json").write_text(text)
  assert walk.find(root) == ["cat/1.png", "set/1.png"]


def test_other_files_are_named_by_kind_with_the_way_out(folder, caplog):
  root = folder("a.heic", "b.HEIC", "c.tiff", "d.txt", "e.txt", "README", "set.zip", "f.\udcff")
  assert walk.find(root) == ["cat/1.png"]
  assert "not read: 2 .heic, 1 .tiff; convert them to PNG, for instance by: magick" in caplog.text
  assert "not read: 1 .zip; unpack them if they hold images" in caplog.text
  info = [r.message for r in caplog.records if r.message.startswith("other files: ")]
  assert info in ([], ["other files: 2 .txt, 1 without suffix, 1 .\\udcff"])
  assert walk.kinds(walk.walk(root).others).startswith("2 .heic, 2 .txt, 1 ")


def test_a_folder_of_other_pictures_alone(tmp_path):
  (tmp_path / "a.heic").write_bytes(b"")
  with pytest.raises(ValueError, match=r"no image in .* \(1 \.heic\); it takes \.jpg"):
    walk.find(tmp_path)


def test_links_and_folders_that_look_like_pictures(folder, caplog):
  root = folder("dog.png/2.png")
  (root / "circle").symlink_to(root)
  (root / "cat/loop.png").symlink_to(root / "cat/loop.png")
  (root / "cat/folder.png").symlink_to(root / "dog.png")
  assert walk.find(root) == ["cat/1.png", "cat/loop.png", "dog.png/2.png"]
  for name in ("circle", "cat/folder.png"):
    assert f"'{name}' is a link to a folder and is not entered" in caplog.text
  Image.new("RGB", (8, 8)).save(root / "cat/1.png")
  Image.new("RGB", (8, 8)).save(root / "dog.png/2.png")
  os.mkfifo(root / "cat/pipe.png")
  with pytest.raises(ValueError, match="2 of 4 images") as error:
    data.load("folder", path=str(root), size=8)
  assert "'cat/loop.png' (Too many levels of symbolic links)" in str(error.value)
  assert "'cat/pipe.png' (not a regular file)" in str(error.value)


def test_animations_are_counted(tmp_path, caplog):
  frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
  frames[0].save(tmp_path / "1.png", save_all=True, append_images=frames[1:])
  frames[0].save(tmp_path / "2.png")
  for verify in (True, False):
    caplog.clear()
    train, _ = data.load("folder", path=str(tmp_path), size=8, verify=verify)
    assert "1 of 2 images are animations, of which the first frame is read: '1.png'" in caplog.text
    assert (train.image[np.array([0])] == [255, 0, 0]).all()
