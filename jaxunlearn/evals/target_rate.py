"""How often the model still generates what it was to forget (Alberti et al., 2025, section 5.2).

    rate = share of samples with  min_a ||sample - a||_2 < radius,   in pixels of [0, 1]

For MNIST and the T-shirt the radius is 10: no real digit is nearer to it than 11.48.
"""

from jaxunlearn import evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import statistics


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`{target_name}_rate`, with a Wilson interval; a task without a target has no such value."""
  del eps_fn  # the samples are made from it
  if not len(task.target):
    return {}
  hits, n = int(task.is_target.sum()), len(task.samples)
  identity = f"extractor=pixels {task.samples_identity}"
  rate = evals.Value(hits / n, statistics.wilson(hits, n), identity)
  return {f"{task.options.target_name}_rate": rate}
