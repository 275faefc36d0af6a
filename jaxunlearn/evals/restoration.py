"""What the model makes of the target when it is noised half-way (Alberti et al., 2025, sec. 5.1).

The target is noised once to t = 250 and denoised n times with fresh noise over all t + 1 steps;
the score is the mean similarity of the restored images to the target.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import evals
from jaxunlearn.diffusion import EpsFn, sampling
from jaxunlearn.evals import statistics

# (restored [K, n, H, W, C], target [K, H, W, C]) -> [K, n]
Similarity = Callable[[Float[Array, "K n H W C"], Float[Array, "K H W C"]], Array | np.ndarray]


def score(
  eps_fn: EpsFn, task: evals.Task, name: str, similarity: Similarity, n: int, /, **facts: Any
) -> dict[str, evals.Value]:
  """`name`, averaged over targets, with the interval of the mean over the n restorations.

  `facts` say in its identity what the similarity is. A task without a target has no such value.
  """
  if not len(task.target):
    return {}
  t, target = task.options.inject_t, jnp.asarray(task.codec.encode(task.target))
  key, options = task.key(name), task.sampler
  made = sampling.inject(eps_fn, task.process, key, target, t, n=n, options=options)
  pictures = task.codec.decode(np.asarray(made).reshape(-1, *made.shape[2:]))
  restored = jnp.asarray(pictures.reshape(*made.shape[:2], *pictures.shape[1:]))
  scores = np.asarray(similarity(restored, jnp.asarray(task.target)), np.float64).mean(axis=0)
  identity = evals.identity(
    **facts, inject_t=t, inject_n=n, sampler="ddpm", steps=t + 1, **options.facts()
  )
  value = evals.Value(
    float(scores.mean()),
    statistics.mean_interval(scores),
    f"{identity} {task.target_identity} {task.model_identity}",
  )
  return {name: value}
