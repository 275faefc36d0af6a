"""How well a score tells members from others: AUC, TPR at a FPR, ASR, and one record's p-value.

A low score speaks for a member. Everything is float64 and of plain arrays.

AUC    P(s_member < s_other) + P(s_member = s_other) / 2; .5 is a guess, and one below .5 tells the
       members as well, the other way round
TPR    the share of members whose conformal p-value is at most the FPR wanted: the threshold comes
       from the others alone, and others not yet seen fall below it at no more than that rate
ASR    max over thresholds of (TPR + 1 - FPR) / 2; threshold and side are chosen on one half of
       the records and the value is that of the other half
p      (1 + #others with a score <= s) / (M + 1), of M others (Vovk et al., 2005): uniform or larger
       where the record is one of their distribution that was not trained on
"""

import numpy as np
from jaxtyping import Float, Shaped


def auc(members: Shaped[np.ndarray, " N"], others: Shaped[np.ndarray, " M"]) -> float:
  """The share of pairs in which the member is lower (Mann and Whitney, 1947), ties half."""
  others = np.sort(others)
  first, last = (np.searchsorted(others, members, side=side) for side in ("left", "right"))
  return float(1 - np.mean(first + last) / (2 * len(others)))


def p_values(
  scores: Shaped[np.ndarray, " N"], others: Shaped[np.ndarray, " M"]
) -> Float[np.ndarray, " N"]:
  """The conformal p-value of each score. Of -scores and -others it is that of the other side."""
  below = np.searchsorted(np.sort(others), scores, side="right")
  return (1 + below) / (len(others) + 1)


def smallest_p(m: int) -> float:
  """The smallest p-value that m others allow."""
  return 1 / (m + 1)


def tpr(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
  """The share of members that are found; 0 where smallest_p of the others is above `fpr`."""
  return float(np.mean(p_values(members, others) <= fpr))


def asr(
  members: np.ndarray, more_members: np.ndarray, others: np.ndarray, more_others: np.ndarray
) -> float:
  """The first of each kind choose side and threshold, the second give the value."""
  sign, threshold = best(members, others)
  found = lambda scores: float(np.mean(sign * scores <= threshold))
  return (found(more_members) + 1 - found(more_others)) / 2


def best(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
  """The side, 1 or -1, and the threshold of the largest (TPR + 1 - FPR) / 2 on these records."""
  found = []
  for sign in (1.0, -1.0):
    a, b = np.sort(sign * members), np.sort(sign * others)
    at = np.concatenate([a, b])
    gap = [np.searchsorted(v, at, side="right") / len(v) for v in (a, b)]
    gain = gap[0] - gap[1]
    found.append((gain.max(), sign, at[gain.argmax()]))
  _, sign, threshold = max(found)
  return sign, float(threshold)
