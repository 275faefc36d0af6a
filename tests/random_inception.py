"""FID's Inception with random weights in PyTorch's names, and a stand-in that costs nothing."""

import functools
import pathlib
import tempfile

import numpy as np
import safetensors.numpy

from jaxunlearn.models import inception
from jaxunlearn.weights import extractors

_FOLDER = tempfile.TemporaryDirectory(prefix="jaxunlearn-inception-")  # goes with the process


@functools.cache
def weights() -> pathlib.Path:
  return save("random", state_dict())


def save(name, state) -> pathlib.Path:
  path = pathlib.Path(_FOLDER.name) / f"{name}.safetensors"
  safetensors.numpy.save_file(state, path)
  return path


@functools.cache
def state_dict():
  """Every array random, statistics included, such that activations stay O(1)."""
  rng = np.random.default_rng(0)
  return {name: _draw(rng, name, shape) for name, shape in sorted(extractors.inception_shapes())}


def _draw(rng, name, shape):
  if len(shape) == 4:
    return rng.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
  low, high = {"weight": (0.5, 1.5), "running_var": (0.5, 2)}.get(name.split(".")[-1], (-0.3, 0.3))
  return rng.uniform(low, high, shape).astype(np.float32)


STAND_IN = save("stand_in", {"none": np.zeros(1)})


def stand_in(monkeypatch, folder):
  """Makes of STAND_IN an Inception of 27 features, means of 3 x 3 tiles; caches lie in `folder`."""
  tiles = lambda params, x: x[:, :297, :297].reshape(-1, 3, 99, 3, 99, 3).mean((2, 4))
  monkeypatch.setattr(inception, "FEATURES", 27)
  monkeypatch.setattr(inception, "features", lambda params, x: tiles(params, x).reshape(-1, 27))
  monkeypatch.setattr(extractors, "inception", lambda state: {})
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(folder))
