"""Files to damage, and how: bits flipped, ends cut off, pieces doubled; for tests/fuzz.py."""

import functools
import io
import pathlib
import shutil
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxunlearn import build, checkpoint, data, train
from jaxunlearn.reports import writer
from tests import nets, tiny_config, tiny_folder

MODES = ("L", "RGB", "RGBA", "P", "1", "LA", "I;16", "CMYK")
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
CONFIG_FILES = (
  "",
  "def get_config(",
  "def get_config():\n  return 5\n",
  "def get_config():\n  return {}\n",
  "def get_config():\n  pass\n",
  "def get_config():\n  raise RuntimeError('two\\nlines')\n",
  "def get_config(x):\n  return {}[x]\n",
  "import sys\nsys.exit(3)\n",
  "get_config = 3\n",
  "x = 1\n",
  "\0",
  "import nothing_of_that_name\n",
  "raise KeyError\n",
  "def get_config():\n  return get_config()\n",
  *(
    f"from ml_collections import ConfigDict as C\ndef get_config():\n  return C({fields})\n"
    for fields in ("", "{'runs': 3}", "{'runs': {'a': {}}}", "{'runs': {}}", "{'sources': 1}")
  ),
  *(
    f"from configs import common\ndef get_config():\n  c = common.get_config(); {line}; return c\n"
    for line in (
      "del c['data']",
      "c.train = 3",
      "c.extra = {'a': 1}",
      "c.seed = 'x'",
      "c = dict(c)",
    )
  ),
)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
  """Some bits flipped, the end cut off, a piece doubled or zeroed, or nothing left."""
  if not content:
    return b"\0"
  out, how = bytearray(content), rng.integers(5)
  at = int(rng.integers(len(out)))
  if how == 0:
    for place in rng.integers(len(out), size=rng.integers(1, 4)):
      out[place] ^= 1 << int(rng.integers(8))
  elif how == 1:
    del out[at:]
  elif how == 2:
    out[at:at] = out[at : at + int(rng.integers(1, 64))]
  elif how == 3:
    out[at : at + 8] = bytes(len(out[at : at + 8]))
  else:
    out = bytearray(rng.choice([b"", b"{}", b"[]", b"null", b"3", b"\xff\xfe", b"NaN"]))
  return bytes(out)


def mutated(text: str, rng: np.random.Generator) -> str:
  """A text with a character or a piece more, less or other."""
  at = int(rng.integers(len(text) + 1))
  more = ("", "x", ".", "-", "[0]", "\n", "(", "lambda", "é", "\0", " ", "=", "0", "'")
  return text[:at] + more[rng.integers(len(more))] + text[at + int(rng.integers(0, 3)) :]


class Files:
  """What is damaged, made once: pictures, weights in diffusers' layout, a finished run."""

  def __init__(self, root: pathlib.Path):
    self.root = root

  @functools.cached_property
  def pictures(self) -> pathlib.Path:
    """12 pictures of 8 pixels a side, one of a name with an accent."""
    folder = self.root / "whole"
    rng = np.random.default_rng(0)
    for i in range(12):
      path = folder / ("b" if i < 3 else "a") / (f"caf\u00e9{i}.png" if i == 1 else f"{i}.png")
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path)
    return folder

  @property
  def names(self) -> list[str]:
    found = sorted(path for path in self.pictures.rglob("*.png"))
    return [*(str(path.relative_to(self.pictures)) for path in found), "nothing.png", ""]

  def config(self, folder: pathlib.Path | None = None) -> ConfigDict:
    config = tiny_folder.get_config()
    config.data.path = str(folder or self.pictures)
    return config

  def fresh_picture(self, folder: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """A folder of two good pictures and a damaged one."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(self.pictures / "b", folder / "b")
    suffix = list(FORMATS)[rng.integers(len(FORMATS))]
    image = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
    buffer, mode = io.BytesIO(), MODES[rng.integers(len(MODES))]
    try:
      image.convert(mode).save(buffer, FORMATS[suffix])
    except (OSError, ValueError):  # a mode that the format, or a conversion, does not have
      image.save(buffer, FORMATS[suffix])
    path = folder / "b" / f"new.{suffix}"
    path.write_bytes(damaged(buffer.getvalue(), rng))
    return path

  @functools.cached_property
  def weights(self) -> pathlib.Path:
    return data.ASSETS / "pretrain_mnist"

  @functools.cached_property
  def setup(self) -> build.Setup:
    return build.build(self.run_config())

  def run_config(self) -> ConfigDict:
    return tiny_config.get_config("siss")

  @functools.cached_property
  def state(self) -> Any:
    return build.make_state(self.setup, nets.random_params(self.setup.net))

  @functools.cached_property
  def run(self) -> pathlib.Path:
    """As a run of two steps leaves it, without the training."""
    folder = self.root / "run_whole"
    train.claim(folder, self.setup.config, self.setup.entries())
    saves = checkpoint.Checkpoints(folder / "checkpoints")
    saves.save(self.state)
    saves.close()
    lines = [{"step": i, "loss_x": 1.0, "loss_a": 2.0, "grad_norm": 0.5} for i in (1, 2)]
    with writer.Writer(folder / "metrics.jsonl") as out:
      for line in lines:
        out.write_scalars(line.pop("step"), line)
    value = {"nll_bpd": {"value": 1.5, "ci95": [1.4, 1.6], "identity": "n=8"}}
    (folder / "evals").mkdir()
    for phase in ("before", "after"):
      writer.replace(folder / "evals" / f"{phase}.json", writer.json.dumps(value))
    return folder

  def damaged_copy(
    self, folder: pathlib.Path, name: str, rng: np.random.Generator
  ) -> tuple[pathlib.Path, str]:
    """A copy with one file damaged, its name; small files as often as large ones."""
    copy = self.root / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[rng.integers(len(files))]
    if rng.random() < 0.1:
      path.unlink()
    else:
      content = path.read_bytes()
      head = 4096 if rng.random() < 0.7 else len(content)  # headers, more often than tensors
      path.write_bytes(damaged(content[:head], rng) + content[head:])
    return copy, str(path.relative_to(copy))
