"""Frechet distance (Heusel et al., 2017) of a small classifier's features, without the targets.

It is that of frechet.py, between Gaussians fitted to the 64 features of the samples and of the
reference images. It is no Inception FID: compare it only with values of the same identity.
"""

import jax
import numpy as np

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, frechet, statistics

RESAMPLES = 200

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`feature_fid`, with a bootstrap interval over the samples."""
  del eps_fn
  classifier = classifiers.load(task.options.classifier)
  parts = (classifier.features(data.to_model(part)) for part in task.reference.chunks(256))
  features = classifier.features(task.kept)
  to_reference = frechet.distance_to(frechet.stream(parts, features.shape[1]))
  distance = lambda sample: to_reference(frechet.moments(sample))
  rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key("feature_fid"))))
  interval = statistics.bootstrap(distance, features, rng, RESAMPLES)
  identity = evals.identity(
    extractor=classifier.identity,
    removed="target",
    reference=task.reference_identity,
    bootstrap=RESAMPLES,
  )
  value = evals.Value(
    distance(features),
    interval and (max(0.0, interval[0]), interval[1]),
    f"{identity} {task.samples_identity}",
  )
  return {"feature_fid": value}
