"""k-means of features of the predicted picture (Golatkar et al., 2024), decoded from its latent.

    x0 = (x_t - sigma_t eps) / gamma_t      eps of the backbone under the empty condition
    f(x_t, t) = features(decode(x0)) / |...|
    log p_{i,t}(x_t) = -gamma_t^2 min_k |f - mu_ik| / temperature + const

The features are those of an embedded classifier, or of a CLIP vision tower, as in the paper for
text-to-image. gamma_t^2 is ours: where x_t tells nothing, the weights are the priors. A part sees
its own source alone: deleting a source deletes its centroids. The networks of the features, of the
backbone and of the decoder are public: they must have seen no source.

With `every` k > 1 a sampler asks the router at each k-th call of the network alone, and the weights
of that call hold until the next (diffusion/held.py).
"""

import dataclasses
import functools
import pathlib
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.cluster.vq
from jaxtyping import Array, Float, Real

from jaxunlearn import data, latents
from jaxunlearn.cdm import routers
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import classifiers
from jaxunlearn.inputs import ranges
from jaxunlearn.latents import cache
from jaxunlearn.weights import clip_files

CHUNK = 64  # records whose features are computed at once
Features = Callable[[Array], Array]


class OnBackbone(NamedTuple):
  """A router on what is frozen, a pytree."""

  logits: Callable[..., Array]
  every: int


@dataclasses.dataclass(frozen=True)
class Router:
  k: ranges.Count = 32  # centroids of a source; of one with fewer pictures, as many as those
  features: str = "emoji"  # an embedded classifier, or the folder of a CLIP vision tower
  temperature: ranges.Above0 = 0.05
  every: ranges.Count = 1  # calls of the network for one of the router
  iterations: ranges.Count = 10  # of Lloyd's algorithm

  independent: ClassVar[bool] = True

  def __post_init__(self) -> None:
    ranges.check(self)

  def fit(
    self,
    records: Mapping[str, data.Records],
    net: Any,
    backbone: Any,
    process: Diffusion,
    codec: latents.Pixels | latents.Codec = latents.PIXELS,
  ) -> dict[str, dict[str, np.ndarray]]:
    """{source: center [K, F], there [K]}; a function of its records and name.

    Raises:
      ValueError: a source without records, no such features.
    """
    del net, backbone, process
    routers.check(records)
    features = jax.jit(_extractor(self.features))
    return {name: self._part(name, mine, codec, features) for name, mine in records.items()}

  def on(
    self, net: Any, backbone: Any, codec: latents.Pixels | latents.Codec = latents.PIXELS
  ) -> OnBackbone:
    """The router with what it stands on bound; raises ValueError without a backbone."""
    if backbone is None:
      raise ValueError("a router of predicted pictures has no backbone; set config.init_from")
    decode = jax.tree_util.Partial(_same)
    if isinstance(codec, latents.Codec):
      decode = jax.tree_util.Partial(_decode(codec.net), codec.params)
    features = _extractor(self.features)
    logits = jax.tree_util.Partial(_logits(self, net), backbone, decode, features)
    return OnBackbone(logits, self.every)

  def seen(self, names: Sequence[str]) -> dict[str, str]:
    parts = {f"centroids of {name}": f"{name} alone" for name in names}
    return {**parts, "features": f"what {self.features} was trained on, and no source"}

  def _part(
    self,
    name: str,
    records: data.Records,
    codec: latents.Pixels | latents.Codec,
    features: Features,
  ) -> dict[str, np.ndarray]:
    """The centroids; of pictures as they come back from the codec, as x0 does."""
    look = cache.look(codec, records)
    rows = np.split(np.arange(len(records)), np.arange(CHUNK, len(records), CHUNK))
    found = [features(jnp.asarray(codec.decode(look(some)))) for some in rows]
    points = np.concatenate(found, dtype=np.float64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    k = min(self.k, len(np.unique(points, axis=0)))
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", UserWarning)  # SciPy's, of a centroid without a point
      center, _ = scipy.cluster.vq.kmeans2(points, k, self.iterations, minit="++", rng=rng)
    pad = (0, self.k - k)
    return {
      "center": np.pad(center, (pad, (0, 0))).astype(np.float32),
      "there": np.arange(self.k) < k,
    }


@functools.cache  # one function object for each: jit tells them apart by identity
def _logits(router: Router, net: Any) -> Callable[..., Array]:
  def logits(
    backbone: Any,
    decode: Features,
    features: Features,
    parts: routers.Part,
    process: Diffusion,
    x_t: Float[Array, "B H W C"],
    t: Real[Array, " B"],
  ) -> Float[Array, "B n"]:
    gamma, sigma = (level[:, None, None, None] for level in routers.levels(process, t))
    eps = process.noise_of(net.apply(backbone, x_t, t), x_t, t)
    f = features(decode((x_t - sigma * eps) / gamma))
    square = jnp.sum((f[:, None, None] - parts["center"]) ** 2, axis=-1)
    nearest = jnp.min(jnp.where(parts["there"], square, jnp.inf), axis=-1)
    return -(gamma[:, :, 0, 0] ** 2) * jnp.sqrt(nearest + 1e-12) / router.temperature

  return logits


@functools.cache
def _decode(net: Any) -> Callable[..., Array]:
  return lambda params, z: net.decode(params, z)


def _same(x: Array) -> Array:
  return x


def _extractor(name: str) -> Features:
  """Pictures in [-1, 1] -> features of length 1, a pytree; raises ValueError for a wrong name."""
  if name in classifiers.RECIPES:
    found = classifiers.load(name)
    return jax.tree_util.Partial(_of_classifier(name), found.params)
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    raise ValueError(
      f"config.router.features is {name!r}; use the folder of a CLIP vision tower, or one of: "
      f"{', '.join(classifiers.RECIPES)}"
    )
  net, params = clip_files.vision(folder)
  return jax.tree_util.Partial(_of_clip(net), params)


@functools.cache
def _of_classifier(name: str) -> Callable[..., Array]:
  """The activations of its penultimate layer, of pictures brought to its size."""
  recipe = classifiers.RECIPES[name]

  def features(params: Any, images: Array) -> Array:
    found: Any = recipe.net.apply({"params": params}, resized(images, recipe.shape))
    return unit(found[1])

  return features


@functools.cache
def _of_clip(net: Any) -> Callable[..., Array]:
  def features(params: Any, images: Array) -> Array:
    shown = resized(jnp.clip(images, -1, 1), (net.image_size, net.image_size, 3)) / 2 + 0.5
    return unit(net.embed(params, (shown - clip_files.MEAN) / clip_files.STD))

  return features


def resized(
  images: Float[Array, "B H W C"], shape: tuple[int, int, int]
) -> Float[Array, "B h w c"]:
  """Pictures of that shape: bilinear, and the mean of what falls into a pixel where they shrink."""
  if images.shape[-1] != shape[-1]:
    grey = images.mean(axis=-1, keepdims=True)
    images = jnp.broadcast_to(grey, (*images.shape[:-1], shape[-1]))
  if images.shape[1:3] == shape[:2]:
    return images
  return jax.image.resize(images, (len(images), *shape), "linear", antialias=True)


def unit(f: Float[Array, "B F"]) -> Float[Array, "B F"]:
  """Rows of length 1."""
  return f / jnp.sqrt(jnp.sum(f**2, axis=1, keepdims=True) + 1e-12)
