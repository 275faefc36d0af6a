"""k-means in each source: its density is a Gaussian around each of its centroids, noised.

Features are sums over p x p pixels, divided by p: a projection P with orthonormal rows, in which
noise stays isotropic. With centroids mu_k, shares pi_k and variances v_k of a source there,

    p_t(P x_t) = sum_k pi_k N(P x_t; gamma_t mu_k, (gamma_t^2 v_k + sigma_t^2) I)

A part sees its own source alone: deleting a source deletes its centroids, and nothing is left.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.cluster.vq
from jaxtyping import Array, Float

from jaxunlearn import data
from jaxunlearn.cdm import routers
from jaxunlearn.diffusion import Diffusion

MIN_VARIANCE = 1e-3  # of a centroid, in squared pixels of [-1, 1]: no picture is infinitely likely


@dataclasses.dataclass(frozen=True)
class Router:
  k: int = 32  # centroids of a source; of a smaller one, as many as it has records
  pool: int = 4  # p
  temperature: float = 1.0  # the logits are divided by it

  independent: ClassVar[bool] = True

  def __post_init__(self) -> None:
    if self.k < 1 or self.pool < 1 or not self.temperature > 0:
      raise ValueError(
        f"k {self.k}, pool {self.pool} and temperature {self.temperature} of k-means; use at "
        "least 1, at least 1 and more than 0"
      )

  def fit(
    self,
    records: Mapping[str, data.Records],
    net: Any = None,
    backbone: Any = None,
    process: Diffusion | None = None,
  ) -> dict[str, dict[str, np.ndarray]]:
    """{source: center [K, F], variance [K], log_share [K]}; a function of its records and name."""
    del net, backbone, process
    return {name: self._part(name, mine) for name, mine in records.items()}

  def _part(self, name: str, records: data.Records) -> dict[str, np.ndarray]:
    pixels = np.concatenate([data.to_model(part) for part in records.chunks(1024)])
    features = np.asarray(self.features(jnp.asarray(pixels)), np.float64)
    k = min(self.k, len(features))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    center, _ = scipy.cluster.vq.kmeans2(features, k, minit="++", rng=rng)
    nearest, _ = scipy.cluster.vq.vq(features, center)
    counts = np.bincount(nearest, minlength=k)
    error = np.mean((features - center[nearest]) ** 2, axis=1)
    total = np.bincount(nearest, weights=error, minlength=k)
    variance = np.maximum(total / np.maximum(counts, 1), MIN_VARIANCE)
    log_share = np.full(self.k, -np.inf)
    log_share[:k] = np.where(counts, np.log(np.maximum(counts, 1) / len(features)), -np.inf)
    pad = self.k - k
    part = {
      "center": np.pad(center, ((0, pad), (0, 0))),
      "variance": np.pad(variance, (0, pad), constant_values=1.0),
      "log_share": log_share,
    }
    return {key: value.astype(np.float32) for key, value in part.items()}

  def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
    """P x; raises ValueError where p does not divide the picture's sides."""
    b, h, w, c = x.shape
    p = self.pool
    if h % p or w % p:
      raise ValueError(f"pool {p} does not divide pictures of {h}x{w}; use a divisor of both")
    pooled = x.reshape(b, h // p, p, w // p, p, c).sum(axis=(2, 4)) / p
    return pooled.reshape(b, -1)

  def logits(
    self, parts: routers.Part, process: Diffusion, x_t: Float[Array, "B H W C"], t: Array
  ) -> Float[Array, "B n"]:
    """log p_{i,t}(P x_t), in float32."""
    gamma, sigma = (level[:, None, None] for level in routers.levels(process, t))
    f = self.features(x_t)[:, None, None]  # [B, 1, 1, F]
    apart = jnp.sum((f - gamma[..., None] * parts["center"]) ** 2, axis=-1)  # [B, n, K]
    variance = gamma**2 * parts["variance"] + sigma**2
    log_normal = -0.5 * (apart / variance + f.shape[-1] * jnp.log(2 * jnp.pi * variance))
    return jax.nn.logsumexp(parts["log_share"] + log_normal, axis=-1) / self.temperature
