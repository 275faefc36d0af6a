"""What is kept, class by class: one that deletion takes along must not vanish unseen.

class_share/d        share of the samples, without the targets, that the classifier calls d
class_confidence/d   mean probability of d over them (0 where there are none)
worst_class_share    the smallest of the shares

`d` is a class: a digit, or like `food-drink` for "Food & Drink".
"""

import re

from jaxunlearn import evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import classifiers, statistics

check = classifiers.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """Shares with Wilson intervals, mean confidences with Student's."""
  del eps_fn
  classifier = classifiers.load(task.options.classifier)
  p = classifier.probabilities(task.kept)
  identity = evals.identity(extractor=classifier.identity, removed="target")
  identity = f"{identity} {task.samples_identity}"
  shares, confidences = {}, {}
  for i, name in enumerate(classifier.recipe.classes):
    d = "-".join(re.findall(r"[a-z0-9]+", name.lower()))
    mine = p[p.argmax(axis=1) == i, i]
    share = len(mine) / max(len(p), 1)
    interval = statistics.wilson(len(mine), len(p))
    shares[f"class_share/{d}"] = evals.Value(share, interval, identity)
    confidence = float(mine.mean()) if len(mine) else 0.0
    spread = statistics.mean_interval(mine)
    confidences[f"class_confidence/{d}"] = evals.Value(confidence, spread, identity)
  worst = min(shares.values(), key=lambda value: value.value)
  return {**shares, **confidences, "worst_class_share": worst}
