"""UA, unlearning accuracy (Fan et al., 2024; UnlearnCanvas, Zhang et al., 2024), and its reverse.

ua = share of samples under the condition to forget that a classifier takes for anything else
ar = 1 - ua, attack recovery: what an attack brings back (AR, Yuan et al., 2025)
"""

from jaxunlearn import evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, statistics

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`ua` and `ar`, with Wilson intervals; a task without a class or style to forget has neither."""
  del eps_fn
  if task.concept is None or not task.of_concept.any():
    return {}
  asked = task.samples[task.of_concept]
  classifier = classifiers.of_column(task.options, task.concept.column)
  hits, n = int(classifier.agrees(asked, [task.concept_name] * len(asked)).sum()), len(asked)
  low, high = statistics.wilson(hits, n)
  identity = f"asked={n} extractor={classifier.identity} {task.samples_identity}"
  return {
    "ua": evals.Value(1 - hits / n, (1 - high, 1 - low), identity),
    "ar": evals.Value(hits / n, (low, high), identity),
  }
