"""Does a picture show what its prompt names? By the embedded classifiers, in the place of TIFA.

aligned_class    the share of samples whose likeliest class is the one asked for
aligned_style    the same of the style, where the data has styles
aligned_nearest  the share whose nearest training picture, in the features of the class' classifier,
                 is one of the class asked for: of captions, where no classifier knows the names
alignment        the mean of those that there are

TIFA (Hu et al., 2023) asks a language model for questions; reports/tifa.py writes pictures for it.
"""

import numpy as np

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, distances, statistics

CHUNK = 512  # training pictures at once

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """Shares with Wilson intervals; {} of an unconditional model."""
  del eps_fn
  if task.c is None or not len(task.kept):
    return {}
  c = task.c.reshape(len(task.c), -1)[task.is_kept]
  right = {}
  for column, name in enumerate(("class", "style")[: c.shape[1]]):
    if column and not task.options.style_classifier:
      continue
    classifier = classifiers.of_column(task.options, column)
    asked = [task.vocabulary[column][value] for value in c[:, column]]
    if set(asked) <= set(classifier.recipe.classes):
      right[name] = classifier.agrees(task.kept, asked), classifier.identity
  if task.split is not None and len(task.split.kept):
    classifier = classifiers.of_column(task.options, 0)
    right["nearest"] = neighbours(task, classifier) == c[:, 0], classifier.identity
  out = {f"aligned_{name}": _share(*found, task) for name, found in right.items()}
  if right:
    whole = np.mean([found for found, _ in right.values()], axis=0)
    extractors = "+".join(dict.fromkeys(extractor for _, extractor in right.values()))
    identity = f"of={'+'.join(right)} extractor={extractors} {task.samples_identity}"
    interval = statistics.mean_interval(whole)
    out["alignment"] = evals.Value(float(whole.mean()), interval, identity)
  return out


def neighbours(task: evals.Task, classifier: classifiers.Trained) -> np.ndarray:
  """[N] the class of the training picture whose features are nearest to each kept sample's."""
  assert task.split is not None
  mine = classifier.features(task.kept)
  best, found = np.full(len(mine), np.inf), np.zeros(len(mine), int)
  start = 0
  for part in task.split.kept.chunks(CHUNK):
    apart = distances.squared(mine, classifier.features(data.to_model(part)))
    label = task.split.kept.label[start : start + len(part)][apart.argmin(axis=1)]
    found = np.where(apart.min(axis=1) < best, label, found)
    best, start = np.minimum(best, apart.min(axis=1)), start + len(part)
  return found


def _share(right: np.ndarray, extractor: str, task: evals.Task) -> evals.Value:
  hits, n = int(right.sum()), len(right)
  identity = f"kept={n} extractor={extractor} {task.samples_identity}"
  return evals.Value(hits / n, statistics.wilson(hits, n), identity)
