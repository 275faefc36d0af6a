"""How well the model restores the target from half-way noise (Alberti et al., 2025, section 5.1).

The target is noised once to t = 250 and denoised n times with fresh noise; the score is the mean
similarity to the target. Theirs is the cosine of SSCD features, of photographs; here it is
Pearson's correlation of pixels: 1 a perfect copy, 0 unrelated.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import evals, sampling
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import statistics


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`copy_score`, averaged over targets, with the interval of the mean over the n restorations.

  A task without a target has no such value.
  """
  if not len(task.target):
    return {}
  t, n = task.options.inject_t, task.options.inject_n
  target = jnp.asarray(task.target)
  restored = sampling.inject(eps_fn, task.process, task.key("copy_score"), target, t, n=n)
  scores = np.asarray(correlation(restored, target[:, None]), np.float64).mean(axis=0)
  identity = evals.identity(extractor="pixels", similarity="pearson", inject_t=t, inject_n=n)
  value = evals.Value(
    float(scores.mean()),
    statistics.mean_interval(scores),
    f"{identity} sampler=ddpm steps={t + 1} {task.target_identity} {task.model_identity}",
  )
  return {"copy_score": value}


def correlation(
  a: Float[Array, "*#batch H W C"], b: Float[Array, "*#batch H W C"]
) -> Float[Array, "*batch"]:
  """Pearson's correlation of the pixels of two images; 0 where one of them is constant."""
  axes = (-3, -2, -1)
  a, b = (v - v.mean(axes, keepdims=True) for v in (a, b))
  norms = jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))
  return jnp.sum(a * b, axes) / jnp.where(norms > 0, norms, 1.0)
