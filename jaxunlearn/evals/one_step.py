"""How sure the model is of a prompt at the first look: high where it is memorised (Webster, 2023).

One step from the largest noise level to none, with sigma = sigma_T / gamma_T and noise n:

    z0 = sigma n,   z1 = z0 - sigma eps_s(z0 / sqrt(1 + sigma^2), T - 1)
    score = mean (z0 - z1)^2 = sigma^2 mean eps_s^2

eps_s is under the guidance of the evaluation. (Webster's Heun step has no second half here, since
it ends at 0.) No training picture is looked at. config.eval.prompt_noises is how many noises each
prompt has, where Webster takes one. By _original or _kept at the end as `evals.Task.groups` has it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import evals
from jaxunlearn.diffusion import Diffusion, EpsFn, guidance
from jaxunlearn.evals import statistics, text_noise


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`one_step` of each group of prompts; a model without conditions has none."""
  if task.c is None:
    return {}
  noise, values = evals.prompt_noise(task, "one_step"), {}
  for end, mask in task.groups.items():
    prompts = text_noise.asked(task, mask)
    scores = np.concatenate([score(eps_fn, task.process, noise, c) for c in prompts])
    identity = evals.prompt_identity(task, len(prompts), solver="one-step")
    interval = statistics.mean_interval(scores)
    values[f"one_step{end}"] = evals.Value(float(scores.mean()), interval, identity)
  return values


def score(
  eps_fn: EpsFn, process: Diffusion, noise: Float[Array, "B H W C"], c: Any
) -> Float[np.ndarray, " B"]:
  """The score of the prompts c by the noise n; the guidance is that of `eps_fn`."""
  w = jnp.float32(guidance.scale_of(eps_fn))
  bare = guidance.unguided(eps_fn)
  return np.asarray(_score(bare, process, w, jnp.asarray(noise), jnp.asarray(c)))


@functools.partial(jax.jit, static_argnames="process")
def _score(eps_fn: EpsFn, process: Diffusion, w: Array, noise: Array, c: Array) -> Array:
  sigma = np.float32(np.exp(process.log_noise_to_signal()[-1]))
  x_t = sigma * noise / np.float32(np.sqrt(1 + sigma**2))
  eps = guidance.guided_by(eps_fn, w, x_t, jnp.full(len(noise), process.T - 1), c)
  return sigma**2 * jnp.mean(eps**2, axis=(1, 2, 3))
