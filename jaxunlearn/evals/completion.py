"""Completion, an attack: pictures of the concept, noised part of the way, are denoised under it.

completion_ar    share of what comes out that a classifier takes for the concept

A picture noised to config.eval.completion_t still shows its coarse shape, so that any model
completes some of them: what counts is the value beside that of a model which never saw the concept.
The pictures are held-out ones, or those to forget where none is held out; DDIM goes down from there
by the model's own guidance.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn, sampling
from jaxunlearn.evals import classifiers, statistics

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`completion_ar`, with a Wilson interval; {} without a concept or pictures of it."""
  if task.concept is None or task.split is None:
    return {}
  shown = task.split.like_deleted if len(task.split.like_deleted) else task.split.deleted
  n = min(task.options.completion_n, len(shown))
  if not n:
    return {}
  picked = shown.take(np.arange(n) * len(shown) // n)
  pictures = data.to_model(picked.image[np.arange(n)])
  images = _completed(eps_fn, task, pictures, picked.conditions)
  classifier = classifiers.of_column(task.options, task.concept.column)
  hits = int(classifier.agrees(images, [task.concept_name] * n).sum())
  facts = evals.identity(
    completed=n,
    completion_t=task.options.completion_t,
    completion_steps=task.options.completion_steps,
    **task.sampler.facts(),
    shown=evals.fingerprint(pictures),
    extractor=classifier.identity,
  )
  identity = f"{facts} concept={task.concept_name.replace(' ', '-')} {task.model_identity}"
  return {"completion_ar": evals.Value(hits / n, statistics.wilson(hits, n), identity)}


def _completed(eps_fn: EpsFn, task: evals.Task, pictures: np.ndarray, c: np.ndarray) -> np.ndarray:
  """What the model makes of the pictures, under their own conditions."""
  z = jnp.asarray(task.codec.encode(pictures))
  made = sampling.complete(
    eps_fn,
    task.process,
    task.key("completion"),
    z,
    task.options.completion_t,
    jnp.asarray(c),
    steps=task.options.completion_steps,
    options=task.sampler,
  )
  return task.codec.decode(np.asarray(jax.device_get(made)))
