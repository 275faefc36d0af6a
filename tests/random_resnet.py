"""SSCD's ResNet-50 with random weights, in a file of torchvision's names."""

import functools
import pathlib
import tempfile

import numpy as np
import safetensors.numpy

_FOLDER = tempfile.TemporaryDirectory(prefix="jaxunlearn-sscd-")  # goes with the process


@functools.cache
def weights() -> pathlib.Path:
  path = pathlib.Path(_FOLDER.name) / "random.safetensors"
  safetensors.numpy.save_file(state_dict(), path)
  return path


@functools.cache
def state_dict() -> dict[str, np.ndarray]:
  """Every array random, statistics included, such that activations stay O(1)."""
  rng = np.random.default_rng(0)
  uniform = lambda low, high, n: rng.uniform(low, high, n).astype(np.float32)
  state = {}

  def conv(name, width, channels, size):
    draw = rng.standard_normal((width, channels, size, size), np.float32)
    state[f"backbone.{name}.weight"] = draw * np.float32((2 / (channels * size**2)) ** 0.5)

  def norm(name, width, gain):
    draws = {
      "weight": uniform(0.5 * gain, gain, width),
      "bias": uniform(-0.3, 0.3, width),
      "running_mean": uniform(-0.3, 0.3, width),
      "running_var": uniform(0.5, 2, width),
    }
    state.update({f"backbone.{name}.{k}": v for k, v in draws.items()})

  conv("conv1", 64, 3, 7)
  norm("bn1", 64, 1.0)
  channels = 64
  for i, blocks in enumerate((3, 4, 6, 3)):
    width = 64 * 2**i
    for j in range(blocks):
      block = f"layer{i + 1}.{j}"
      for k, (inside, outside, size, gain) in enumerate(
        ((channels, width, 1, 1), (width, width, 3, 1), (width, 4 * width, 1, 0.5)), start=1
      ):
        conv(f"{block}.conv{k}", outside, inside, size)
        norm(f"{block}.bn{k}", outside, gain)
      if j == 0:
        conv(f"{block}.downsample.0", 4 * width, channels, 1)
        norm(f"{block}.downsample.1", 4 * width, 1.0)
      channels = 4 * width
  state["backbone.fc.weight"] = rng.standard_normal((512, channels), np.float32) / 45
  state["backbone.fc.bias"] = uniform(-0.1, 0.1, 512)
  return state
