"""Data: records with ids, and what to delete from them; streams.py makes batches of both.

A source is one module of this folder with a frozen dataclass `Source`, whose `load()` gives
`Records` for training and held-out `Records`. What to delete is data: a list of record ids or
SHA-256 digests, a file of them (one a line), or the name of a class or a style: forget.py.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from jaxunlearn import errors
from jaxunlearn.data.forget import Concept, Forget, named
from jaxunlearn.data.ids import SHA256
from jaxunlearn.data.records import Images, Records, check_one_size, concatenate
from jaxunlearn.inputs import plugins, ranges

__all__ = [
  "ASSETS",
  "SHA256",
  "Concept",
  "Forget",
  "Images",
  "Records",
  "check_one_size",
  "concatenate",
  "load",
  "make",
  "named",
  "names",
  "to_model",
  "to_pixels",
]

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
# Modules that are no source.
HELPERS = ("forget", "ids", "looks", "pixels", "records", "roll", "synthetic", "walk")
CHOICES = plugins.Group(__name__, "data source", "Source", HELPERS)
names = CHOICES.names


def to_model(image: np.ndarray) -> np.ndarray:
  """uint8 pixels -> float32 in [-1, 1]."""
  return image.astype(np.float32) / 127.5 - 1


def to_pixels(image: np.ndarray) -> np.ndarray:
  """[-1, 1] -> uint8 pixels; what is outside is clipped, and NaN is black."""
  return np.rint(np.clip(np.nan_to_num(image, nan=-1) + 1, 0, 2) * 127.5).astype(np.uint8)


def load(source: str, **fields: Any) -> tuple[Records, Records]:
  """(training, held-out) records of the source of that module name, its fields from the config.

  Raises:
    ValueError: no such source, or a field it does not take; the choices are listed.
  """
  train, heldout = make(source, **fields).load()
  aside = dict.fromkeys(heldout.ids.tolist(), "held out: not trained on")
  return dataclasses.replace(train, aside={**train.aside, **aside}), heldout


def make(source: str, **fields: Any) -> Any:
  """`data/folder.py` is named 'folder'; its fields are those of its `Source`, in their ranges."""
  made = errors.build(CHOICES.module(source).Source, f"data source {source}", fields)
  ranges.check(made)
  return made
