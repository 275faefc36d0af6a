"""How well the model restores the target from half-way noise: restoration.py, in pixels.

Where `sscd` takes the cosine of descriptors of photographs, this is Pearson's correlation of
pixels, for small pictures: 1 a perfect copy, 0 unrelated.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import restoration


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`copy_score`; a task without a target has no such value."""
  pearson = lambda restored, target: correlation(restored, target[:, None])
  facts = {"extractor": "pixels", "similarity": "pearson"}
  return restoration.score(eps_fn, task, "copy_score", pearson, task.options.inject_n, **facts)


def correlation(
  a: Float[Array, "*#batch H W C"], b: Float[Array, "*#batch H W C"]
) -> Float[Array, "*batch"]:
  """Pearson's correlation of the pixels of two images; 0 where one of them is constant."""
  axes = (-3, -2, -1)
  a, b = (v - v.mean(axes, keepdims=True) for v in (a, b))
  norms = jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))
  return jnp.sum(a * b, axes) / jnp.where(norms > 0, norms, 1.0)
