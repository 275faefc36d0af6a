"""Calibration of a router: are its posteriors p(i | x_t) right, at every level of noise?

    NLL   mean of -log w_i of the true source, in nats; the prior's is its entropy
    ECE   sum_b |B_b| / N |accuracy(B_b) - confidence(B_b)|, bins of max_i w_i (Guo et al., 2017)

At high noise nothing can be told and a calibrated router returns the prior.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxunlearn.diffusion import Diffusion

BINS = 15  # of confidence, of equal width
ROWS = 256  # evaluated at once

Row = Mapping[str, Any]


def calibrate(
  log_weights: Callable[[Array, Array], Array],
  process: Diffusion,
  images: Float[np.ndarray, "N H W C"],
  source: Int[np.ndarray, " N"],
  rng: Shaped[Array, "..."],
  levels: int = 10,
) -> list[dict[str, Any]]:
  """One row a level: `t` (first, last), `records`, `nll`, `ece`, `accuracy`, `prior_entropy`.

  Args:
    log_weights: (x_t, t) -> log w [B, n], a pytree (`jax.tree_util.Partial`).
    images: in [-1, 1], held out. Each is noised once at each level; the times of a level are
      spread evenly over it and over the images at random.
    source: the index of each image's source.

  Raises:
    ValueError: levels outside 1..T, no images, another number of sources than of images.
  """
  if not 1 <= levels <= process.T:
    raise ValueError(f"levels {levels} is outside 1..{process.T}, the times of the process")
  if not len(source) or len(images) != len(source):
    raise ValueError(f"{len(images)} images and {len(source)} sources of them; give one of each")
  k_t, k_order, k_eps = jax.random.split(rng, 3)
  t = process.stratified_t(k_t, levels * len(images)).reshape(levels, -1)
  t = jax.random.permutation(k_order, t, axis=1, independent=True)
  entropy = prior_entropy(source)
  table = []
  for level, times in enumerate(t):
    log_w = _posteriors(log_weights, process, images, times, jax.random.fold_in(k_eps, level))
    row = {"t": (int(times.min()), int(times.max())), "records": len(images)}
    table.append({**row, **scores(log_w, source), "prior_entropy": entropy})
  return table


def _posteriors(
  log_weights: Callable[..., Array], process: Diffusion, images: np.ndarray, t: Array, key: Array
) -> np.ndarray:
  """log w [N, n] of the images noised to the times t."""
  parts = []
  for start in range(0, len(images), ROWS):
    rows = slice(start, start + ROWS)
    x = jnp.asarray(images[rows])
    eps = jax.random.normal(jax.random.fold_in(key, start), x.shape)
    parts.append(_weigh(log_weights, process.q_sample(x, t[rows], eps), t[rows]))
  return np.concatenate(parts)


@jax.jit
def _weigh(log_weights: Callable[..., Array], x_t: Array, t: Array) -> Array:
  return log_weights(x_t, t)


def scores(
  log_w: Shaped[np.ndarray, "N n"], source: Int[np.ndarray, " N"], bins: int = BINS
) -> dict[str, float]:
  """nll (nats), ece and accuracy of posteriors; bins are (b / bins, (b + 1) / bins].

  Raises:
    ValueError: a source that has no weight.
  """
  n = log_w.shape[1]
  if source.min() < 0 or source.max() >= n:
    raise ValueError(
      f"sources {source.min()}..{source.max()} of images weighed over {n}; use 0..{n - 1}"
    )
  log_w = log_w.astype(np.float64)
  confidence = np.exp(log_w.max(axis=1))
  right = log_w.argmax(axis=1) == source
  index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gaps = np.bincount(index, weights=right - confidence, minlength=bins)
  return {
    "nll": float(-log_w[np.arange(len(source)), source].mean()),
    "ece": float(np.abs(gaps).sum() / len(source)),
    "accuracy": float(right.mean()),
  }


def prior_entropy(source: Int[np.ndarray, " N"]) -> float:
  """-sum_i lam_i log lam_i of the shares of the sources, in nats."""
  share = np.unique(source, return_counts=True)[1] / len(source)
  return float(-np.sum(share * np.log(share)))


def markdown(table: Sequence[Row]) -> str:
  """The table as text, the least noise first."""
  lines = [
    "| t | NLL, nats | entropy of the prior | ECE | accuracy | images |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for row in table:
    first, last = row["t"]
    numbers = (f"{row[key]:.3f}" for key in ("nll", "prior_entropy", "ece", "accuracy"))
    lines.append(f"| {first} to {last} | {' | '.join(numbers)} | {row['records']} |")
  return "\n".join(lines) + "\n"
