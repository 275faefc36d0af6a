"""What is kept, condition by condition (UnlearnCanvas, Zhang et al., 2024): in-domain and cross.

ira             accuracy on the other values of the condition to forget, over all their samples
ira/NAME        the same of one value; worst_ira is the least of them
cra             accuracy of the other condition (the class where a style is forgotten, or the
                reverse) on the same samples, where the model has two; config.eval.cra = all takes
                the samples asked for the concept too, as UnlearnCanvas's script does
"""

import re
from typing import Any

import numpy as np

from jaxunlearn import errors, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, statistics

OVER = ("kept", "all")


def check(options: Any) -> None:
  """Raises ValueError where a classifier is not there, or cra is over nothing known."""
  classifiers.check(options)
  errors.check_choice("set of samples for cra", options.cra, OVER)


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """Shares of right samples with Wilson intervals; {} where no condition is kept."""
  del eps_fn
  if task.c is None or not task.is_kept.any():
    return {}
  column = task.concept.column if task.concept else 0
  c = task.c.reshape(len(task.c), -1)[task.is_kept]
  right, identity = _right(task, column, c, task.kept)
  each = {}
  for value in np.unique(c[:, column]):
    name = "-".join(re.findall(r"[a-z0-9]+", task.vocabulary[column][value].lower()))
    each[f"ira/{name}"] = _share(right[c[:, column] == value], identity)
  worst = min(each.values(), key=lambda value: value.value)
  out = {"ira": _share(right, identity), "worst_ira": worst}
  if len(task.vocabulary) > 1:
    out["cra"] = _cross(task, 1 - column, c)
  return out | each


def _cross(task: evals.Task, column: int, c: np.ndarray) -> evals.Value:
  """The other condition, over the samples that config.eval.cra says."""
  if task.options.cra == "kept":
    return _share(*_right(task, column, c, task.kept))
  assert task.c is not None
  right, identity = _right(task, column, task.c, task.samples)
  return _share(right, f"{identity} over=all")


def _right(
  task: evals.Task, column: int, c: np.ndarray, samples: np.ndarray
) -> tuple[np.ndarray, str]:
  """Which samples a classifier takes for what they were asked to be, and how it was told."""
  classifier = classifiers.of_column(task.options, column)
  asked = [task.vocabulary[column][value] for value in c[:, column]]
  right = classifier.agrees(samples, asked)
  return right, f"extractor={classifier.identity} {task.samples_identity}"


def _share(right: np.ndarray, identity: str) -> evals.Value:
  hits, n = int(right.sum()), len(right)
  return evals.Value(hits / max(n, 1), statistics.wilson(hits, n), f"kept={n} {identity}")
