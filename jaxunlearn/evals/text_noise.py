"""How far a prompt moves the predicted noise: high where it is memorised (Wen et al., ICLR 2024).

    m_t = ||eps_theta(x_t, t, c) - eps_theta(x_t, t, NULL)||_2      over all values of a latent

along DDIM under the guidance of the evaluation. No training picture is looked at.

text_noise         the mean over noises and steps
text_noise_first   the first step alone, which costs one pass; by _original or _kept at the end as
                   `evals.Task.groups` has it

config.eval.prompt_noises is how many noises each prompt has, prompt_steps how many steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import evals
from jaxunlearn.diffusion import Diffusion, EpsFn, guidance, sampling
from jaxunlearn.evals import statistics


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """Both scores of each group of prompts; a model without conditions has neither."""
  if task.c is None:
    return {}
  noise = evals.prompt_noise(task, "text_noise")
  steps, values = task.options.prompt_steps, {}
  for end, mask in task.groups.items():
    m = [
      magnitudes(eps_fn, task.process, noise, c, steps, task.sampler)[1] for c in asked(task, mask)
    ]
    every = np.concatenate(m)
    identity = evals.prompt_identity(task, len(m), solver=f"ddim:{steps}", **task.sampler.facts())
    for name, scores in (("text_noise", every.mean(axis=1)), ("text_noise_first", every[:, 0])):
      interval = statistics.mean_interval(scores)
      values[f"{name}{end}"] = evals.Value(float(scores.mean()), interval, identity)
  return values


def asked(task: evals.Task, mask: np.ndarray) -> list[np.ndarray]:
  """The conditions of each distinct prompt among those samples, a row a noise."""
  assert task.c is not None
  return [
    np.repeat(c[None], task.options.prompt_noises, axis=0) for c in np.unique(task.c[mask], axis=0)
  ]


def magnitudes(
  eps_fn: EpsFn,
  process: Diffusion,
  x_T: Float[Array, "B H W C"],
  c: Any,
  steps: int,
  options: sampling.Options = sampling.DEFAULT,
) -> tuple[Float[np.ndarray, "B H W C"], Float[np.ndarray, "B S"]]:
  """The samples of the prompts c, and m at each step; the guidance is that of `eps_fn`."""
  w = jnp.float32(guidance.scale_of(eps_fn))
  predict = jax.tree_util.Partial(_predict, guidance.unguided(eps_fn), w)
  z, m = sampling.watched(predict, process, x_T, jnp.asarray(c), steps=steps, options=options)
  return np.asarray(z), np.asarray(m).T


def _predict(eps_fn: EpsFn, w: Array, x_t: Array, t: Array, c: Array) -> tuple[Array, Array]:
  eps_c, eps_null = guidance.branches(eps_fn, x_t, t, c)
  apart = eps_c - eps_null
  return eps_c + w * apart, jnp.sqrt(jnp.sum(apart**2, axis=(1, 2, 3)))
