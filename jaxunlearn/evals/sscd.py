"""How well the model restores the target from half-way noise: restoration.py, by SSCD.

    similarity = cosine of the descriptors (models/resnet.py) of the restored image and the target

config.eval.sscd_protocol names whose numbers the value is to be compared with; the protocol stands
in its identity. Both noise to inject_t = 250 and denoise over all 251 steps:

siss      Alberti et al. (2025), section 5.1: inject_n = 16 restorations, images as they are
retrack   Shi et al. (2026), arXiv 2509.13007, by the settings of the authors' release: one
          restoration, cut to 8 bits, its short side resized to 288 pixels as SSCD's authors advise

A picture of one channel is repeated to three. Any size is taken; under 33 pixels the trunk ends in
one position, and without resizing GeM has nothing to pool: compare small pictures with care.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from jaxunlearn import errors, evals, weights
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import restoration
from jaxunlearn.mesh import sharding
from jaxunlearn.models import resnet
from jaxunlearn.weights import extractors

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, in [0, 1]
STD = np.array([0.229, 0.224, 0.225], np.float32)
BATCH = 16  # images described at a time, of many


class Protocol(NamedTuple):
  """What protocols differ in."""

  n: int | None  # restorations; None: config.eval.inject_n
  short_side: int | None  # pixels after resizing; None: as it is


PROTOCOLS = {"siss": Protocol(None, None), "retrack": Protocol(1, 288)}


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`sscd`; a task without a target has no such value."""
  options = task.options
  protocol = PROTOCOLS[options.sscd_protocol]
  params, extractor = _load(extractors.SSCD.find(options.sscd_weights))
  return restoration.score(
    eps_fn,
    task,
    "sscd",
    functools.partial(similarity, params, protocol.short_side),
    protocol.n or options.inject_n,
    extractor=extractor,
    protocol=options.sscd_protocol,
    resize=f"{protocol.short_side}-bilinear-8bit" if protocol.short_side else "none",
    normalisation="imagenet",
  )


def check(options: Any) -> None:
  """Raises ValueError where the weights are not there or not readable, or for a wrong protocol."""
  errors.check_choice("SSCD protocol", options.sscd_protocol, PROTOCOLS)
  _load(extractors.SSCD.find(options.sscd_weights))


def similarity(
  params: Any,
  short_side: int | None,
  restored: Float[Array, "K n H W C"],
  target: Float[Array, "K H W C"],
) -> Float[np.ndarray, "K n"]:
  """The cosine of each restored image with its target, one target at a time."""
  images = np.concatenate([np.asarray(target)[:, None], np.asarray(restored)], axis=1)
  d = np.stack([resnet.describe(params, prepare(part, short_side)) for part in images])
  return np.einsum("kd,knd->kn", d[:, 0], d[:, 1:])


def describer(
  path: str, short_side: int | None = None
) -> Callable[[Float[np.ndarray, "N H W C"]], Float[np.ndarray, "N D"]]:
  """Images in [-1, 1] -> descriptors of length 1, by the weights at `path` or the cached ones.

  Raises:
    ValueError: the weights are not there or not readable.
  """
  params, _ = _load(extractors.SSCD.find(path))

  def describe(images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N D"]:
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    ready = (sharding.beside(params, prepare(part, short_side)) for part in parts)
    return np.concatenate([np.asarray(resnet.describe(params, part)) for part in ready])

  return describe


def prepare(
  images: Float[np.ndarray, "N H W C"], short_side: int | None = None
) -> Float[np.ndarray, "N h w 3"]:
  """Images in [-1, 1] as the network takes them, resized where a short side is given.

  Raises:
    ValueError: neither one channel nor three.
  """
  if images.shape[-1] not in (1, 3):
    raise ValueError(f"images of {images.shape[-1]} channels have no SSCD; it takes 1 or 3")
  pixels = np.broadcast_to((images + 1) / 2, (*images.shape[:-1], 3))
  if short_side:
    pixels = np.stack([_resized(image, short_side) for image in pixels])
  return (pixels - MEAN) / STD


def _resized(image: np.ndarray, short_side: int) -> np.ndarray:
  """Cut to 8 bits as by a cast (whole levels, but for rounding, stay), resized as Pillow does."""
  short = min(image.shape[:2])
  height, width = (short_side * side // short for side in image.shape[:2])
  picture = Image.fromarray(np.floor(255 * image + 1e-3).astype(np.uint8))
  resized = picture.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(resized, np.float32) / 255


@functools.lru_cache(maxsize=1)
def _load(path: pathlib.Path) -> tuple[Any, str]:
  """The parameters, and the name and the first digits of the sha256 of their file."""
  return sharding.everywhere(extractors.sscd(weights.read(path))), weights.identity(path)
