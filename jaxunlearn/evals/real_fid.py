"""The floor of a feature FID: that of real pictures, as many as there are samples.

Training pictures at random, at most as many as samples, against the same reference: a model that
draws from the data's distribution has no less. It says nothing of the model, and is the same for
every model that is measured by as many samples.
"""

import jax
import numpy as np

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, frechet, statistics
from jaxunlearn.evals.feature_fid import RESAMPLES

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`real_fid` with a bootstrap interval; {} where the records are not known."""
  del eps_fn
  if task.split is None or not len(task.split.kept) or task.options.reference == "train":
    return {}
  classifier, kept = classifiers.load(task.options.classifier), task.split.kept
  rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key("real_fid"))))
  rows = np.sort(rng.permutation(len(kept))[: len(task.kept)])
  features = classifier.features(data.to_model(kept.image[rows]))
  parts = (classifier.features(data.to_model(part)) for part in task.reference.chunks(256))
  to_reference = frechet.distance_to(frechet.stream(parts, features.shape[1]))
  distance = lambda sample: to_reference(frechet.moments(sample))
  identity = evals.identity(
    extractor=classifier.identity, reference=task.reference_identity, real=len(rows)
  )
  interval = statistics.bootstrap(distance, features, rng, RESAMPLES)
  value = distance(features)
  said = f"{identity} {task.samples_identity}"  # of a phase, though the samples have no part in it
  return {"real_fid": evals.Value(value, interval and (max(0.0, interval[0]), interval[1]), said)}
