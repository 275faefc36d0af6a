"""How often a prompt still gives the memorised picture, by each of config.eval.memorised_by.

    kmeans   the sample belongs to the memorised one of two clusters of pixels, which
             config.eval.memorised_file holds (Alberti et al., 2025; memorisation/clusters.py)
    radius   its L2 in [0, 1] pixels to a picture to forget is under config.eval.target_radius
    sscd     the cosine of its SSCD descriptor with that of a picture to forget is at least
             config.eval.memorised_sscd; and `sscd_mean`, the mean of the largest cosines

memorised_BY_rate is of the prompts that the pictures have, memorised_BY_original_rate of those that
none has: `evals.Task.groups`. A deletion succeeded where both are 0.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn import errors, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import sscd, statistics
from jaxunlearn.memorisation import clusters
from jaxunlearn.weights import extractors, identity

Told = tuple[np.ndarray, str, dict[str, np.ndarray]]  # which samples, how, other values of each


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """The rates with Wilson intervals; a task without a target, or of a concept, has none."""
  del eps_fn  # the samples are made from it
  if not len(task.target):
    return {}
  values = {}
  for way in task.options.memorised_by:
    hits, how, besides = WAYS[way](task)
    for end, mask in task.groups.items():
      n, facts = int(mask.sum()), f"asked={int(mask.sum())} extractor={how} {task.samples_identity}"
      share = statistics.wilson(int(hits[mask].sum()), n)
      values[f"memorised_{way}{end}_rate"] = evals.Value(float(hits[mask].mean()), share, facts)
      for name, each in besides.items():
        interval = statistics.mean_interval(each[mask])
        values[f"{name}{end}"] = evals.Value(float(each[mask].mean()), interval, facts)
  return values


def check(options: Any) -> None:
  """Raises ValueError where a way does not exist, or its file is not there or not readable."""
  for way in options.memorised_by:
    errors.check_choice("way in config.eval.memorised_by", way, WAYS)
  if "kmeans" in options.memorised_by:
    clusters.read(pathlib.Path(options.memorised_file))
  if "sscd" in options.memorised_by:
    sscd.check(options)


def _kmeans(task: evals.Task) -> Told:
  found = clusters.read(pathlib.Path(task.options.memorised_file))
  pixels = np.clip((np.asarray(task.samples) + 1) * 127.5, 0, 255)
  return found.are_memorised(pixels), found.identity, {}


def _radius(task: evals.Task) -> Told:
  return task.is_target, "pixels", {}


def _sscd(task: evals.Task) -> Told:
  options = task.options
  short_side = sscd.PROTOCOLS[options.sscd_protocol].short_side
  describe = sscd.describer(options.sscd_weights, short_side)
  cosine = (describe(np.asarray(task.samples)) @ describe(task.target).T).max(axis=1)
  file = identity(extractors.SSCD.find(options.sscd_weights))
  how = f"{file} resize={short_side or 'none'} least={options.memorised_sscd:g}"
  return cosine >= options.memorised_sscd, how, {"sscd_mean": cosine}


WAYS: dict[str, Callable[[evals.Task], Told]] = {
  "kmeans": _kmeans,
  "radius": _radius,
  "sscd": _sscd,
}
