"""The tiny run on a folder of pictures, which can be taken away, with both evaluations.

python -m jaxunlearn.main --config=tests/tiny_folder.py --config.data.path=FOLDER --workdir=...
"""

import pathlib

import numpy as np
from PIL import Image

from configs import common
from tests import tiny_config

STEPS = 24


def get_config():
  config = tiny_config.get_config("siss")
  config.data = common.source("folder", size=28, channels=1)
  config.forget.label = "b"
  config.train.update(steps=STEPS, checkpoint_every=6)
  config.eval.update(before=True, after=True, metrics=("target_rate",))
  config.eval.update(samples=8, batch=8, steps=2)
  return config


def draw(folder: pathlib.Path) -> None:
  """Its 24 pictures of noise, 4 of them to be forgotten."""
  rng = np.random.default_rng(0)
  for i in range(24):
    path = folder / ("b" if i < 4 else "a") / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path)
