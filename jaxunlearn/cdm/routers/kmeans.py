"""k-means in each source: its density is a Gaussian around each of its centroids, noised.

Features are sums over p x p pixels (or places of a latent), divided by p: a projection P with
orthonormal rows, in which noise stays isotropic. With centroids mu_k, shares pi_k and variances
v_k of a source there,

    p_t(P x_t) = sum_k pi_k N(P x_t; gamma_t mu_k, (gamma_t^2 v_k + sigma_t^2) I)

A part sees its own source alone: deleting a source deletes its centroids, and nothing is left.
Golatkar et al. (2024) take the distances of a predicted x0 instead, in features of a network.
"""

import dataclasses
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.cluster.vq
from jaxtyping import Array, Float, Real

from jaxunlearn import data, latents
from jaxunlearn.cdm import routers
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.inputs import ranges
from jaxunlearn.latents import cache

CHUNK = 1024  # records read at a time


@dataclasses.dataclass(frozen=True)
class Router:
  k: ranges.Count = 32  # centroids of a source; of one with fewer pictures, as many as those
  pool: ranges.Count = 4  # p
  temperature: ranges.Above0 = 1.0  # the logits are divided by it
  iterations: ranges.Count = 10  # of Lloyd's algorithm
  floor: ranges.Above0 = 3.0  # of a variance: pixels are not independent, and look too sure without

  independent: ClassVar[bool] = True

  def __post_init__(self) -> None:
    ranges.check(self)

  def fit(
    self,
    records: Mapping[str, data.Records],
    net: Any = None,
    backbone: Any = None,
    process: Diffusion | None = None,
    codec: latents.Pixels | latents.Codec = latents.PIXELS,
  ) -> dict[str, dict[str, np.ndarray]]:
    """{source: center [K, F], variance [K], log_share [K]}; a function of its records and name.

    Raises:
      ValueError: a source without records, pictures that the pool does not divide.
    """
    del net, backbone, process
    routers.check(records)
    part = lambda name, mine: self._part(name, cache.look(codec, mine), len(mine))
    return {name: part(name, mine) for name, mine in records.items()}

  def on(self, net: Any = None, backbone: Any = None, codec: Any = None) -> "Router":
    """Itself: it needs no backbone."""
    del net, backbone, codec
    return self

  def seen(self, names: Sequence[str]) -> dict[str, str]:
    return {f"centroids of {name}": f"{name} alone" for name in names}

  def _part(
    self, name: str, look: Callable[[np.ndarray], np.ndarray], count: int
  ) -> dict[str, np.ndarray]:
    rows = np.split(np.arange(count), np.arange(CHUNK, count, CHUNK))
    pooled = [self.features(jnp.asarray(look(some))) for some in rows]
    features = np.concatenate(pooled, dtype=np.float64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    center, share, variance = self._mixture(features, rng)
    pad = (0, self.k - len(center))
    part = {
      "center": np.pad(center, (pad, (0, 0))),
      "variance": np.pad(np.maximum(variance, self.floor), pad, constant_values=1.0),
      "log_share": np.pad(np.log(share), pad, constant_values=-np.inf),
    }
    return {key: value.astype(np.float32) for key, value in part.items()}

  def _mixture(self, features: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Centroids with their shares and variances; one that no record is nearest to is left out."""
    k = min(self.k, len(np.unique(features, axis=0)))
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", UserWarning)  # SciPy's, of such a centroid
      center, _ = scipy.cluster.vq.kmeans2(features, k, self.iterations, minit="++", rng=rng)
    nearest, _ = scipy.cluster.vq.vq(features, center)
    used, nearest, counts = np.unique(nearest, return_inverse=True, return_counts=True)
    error = np.mean((features - center[used][nearest]) ** 2, axis=1)
    variance = np.bincount(nearest, weights=error) / counts
    return center[used], counts / len(features), variance

  def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
    """P x; raises ValueError where p does not divide the picture's sides."""
    b, h, w, c = x.shape
    p = self.pool
    if h % p or w % p:
      raise ValueError(f"pool {p} does not divide pictures of {h}x{w}; use a divisor of both")
    return x.reshape(b, h // p, p, w // p, p, c).sum(axis=(2, 4)).reshape(b, -1) / p

  def logits(
    self,
    parts: routers.Part,
    process: Diffusion,
    x_t: Float[Array, "B H W C"],
    t: Real[Array, " B"],
  ) -> Float[Array, "B n"]:
    """log p_{i,t}(P x_t) over the temperature, in float32."""
    gamma, sigma = (level[:, None, None] for level in routers.levels(process, t))
    f = self.features(x_t)[:, None, None]  # [B, 1, 1, F]
    apart = jnp.sum((f - gamma[..., None] * parts["center"]) ** 2, axis=-1)  # [B, n, K]
    variance = gamma**2 * parts["variance"] + sigma**2
    log_normal = -0.5 * (apart / variance + f.shape[-1] * jnp.log(2 * jnp.pi * variance))
    return jax.nn.logsumexp(parts["log_share"] + log_normal, axis=-1) / self.temperature
