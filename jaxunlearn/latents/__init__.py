"""Pictures <-> latents: what stands between the data and a network that sees no pixels.

    z = scaling_factor (mean + std n),   n ~ N(0, I)

The moments of a record are computed once and kept on disk (cache.py); n is drawn anew at each step.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxunlearn.inputs import ranges
from jaxunlearn.models import vae

BATCH = 4  # pictures at a time
ROOM = 512 * 512  # pixels at a time where memory counts: they take a gigabyte


@dataclasses.dataclass(frozen=True)
class Options:
  """config.codec."""

  path: str = ""  # the model whose autoencoder it is; "": init_from
  batch: ranges.Count = BATCH  # pictures encoded or decoded at a time


@dataclasses.dataclass(frozen=True)
class Pixels:
  """The codec of a network that sees pixels: pictures are what it sees and makes."""

  def shape(self, seen: tuple[int, int, int]) -> tuple[int, int, int]:
    """Of the pictures, where the network sees arrays of the shape `seen`."""
    return seen

  def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What the network sees of pictures of that shape."""
    return shape

  def encode(self, images: np.ndarray) -> np.ndarray:
    return images

  def decode(self, made: np.ndarray) -> np.ndarray:
    return made


PIXELS = Pixels()


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
  """An autoencoder with its parameters."""

  net: vae.Autoencoder
  params: Any
  batch: int = BATCH

  def shape(self, seen: tuple[int, int, int]) -> tuple[int, int, int]:
    """Of the pictures; raises ValueError for latents of another autoencoder."""
    height, width, channels = seen
    if channels != self.net.latent_channels:
      raise ValueError(
        f"the network takes {channels} channels and the autoencoder of config.codec.path has "
        f"{self.net.latent_channels}; name that of the model"
      )
    return (height * self.net.factor, width * self.net.factor, self.net.out_channels)

  def seen(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the latents of pictures of that shape."""
    height, width, _ = shape
    return (height // self.net.factor, width // self.net.factor, self.net.latent_channels)

  def moments(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N h w z2"]:
    """Mean and log variance side by side of the latents of images in [-1, 1], not scaled.

    Raises:
      ValueError: the images do not divide into latents.
    """
    height, width = images.shape[1:3]
    if not height or not width or height % self.net.factor or width % self.net.factor:
      raise ValueError(
        f"images are {height} x {width} and a latent stands for {self.net.factor} pixels each way; "
        "use sizes that are multiples of it"
      )
    parts = [_moments(self.net, self._placed, part) for part in _parts(images, self.batch)]
    return np.concatenate([np.asarray(part) for part in parts])

  def encode(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N h w z"]:
    """The means of the latents as the diffusion model sees them: scaled, without noise."""
    mean, _ = np.split(self.moments(images), 2, axis=-1)
    return np.float32(self.net.scaling_factor) * mean

  def decode(self, z: Float[np.ndarray, "N h w z"]) -> Float[np.ndarray, "N H W C"]:
    """The pictures of latents as the diffusion model makes them, in [-1, 1] but for overshoot."""
    parts = [_decode(self.net, self._placed, part) for part in _parts(z, self.batch)]
    return np.concatenate([np.asarray(part) for part in parts])

  @functools.cached_property
  def _placed(self) -> Any:
    """The parameters on the device, once for all parts; on a CPU no copy is made."""
    return jax.device_put(self.params)

  @functools.cached_property
  def identity(self) -> str:
    """The first digits of the SHA-256 of the fields and of all parameters."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.net)).encode())
    for path, leaf in jax.tree.leaves_with_path(self.params):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _parts(array: np.ndarray, size: int) -> list[np.ndarray]:
  return [array[i : i + size] for i in range(0, len(array), size)]


@functools.partial(jax.jit, static_argnums=0)
def _moments(net: vae.Autoencoder, params: Any, images: jax.Array) -> jax.Array:
  return jnp.concatenate(net.encode(params, images), axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _decode(net: vae.Autoencoder, params: Any, z: jax.Array) -> jax.Array:
  return net.decode(params, z)
