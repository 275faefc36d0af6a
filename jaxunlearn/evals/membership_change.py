"""The attacker who has the model before and after: what does the change say of each record?

    s(x) = s_before(x) - s_after(x),   the same noise in both   (Chen et al., 2021)

It is low where the score of an attack rose most, as that of a record which was unlearned should.
Named membership_change_ATTACK/WHAT, with the words of membership.py:

deleted-auc, ... or deleted-p   the deleted against held-out ones: whether the change itself shows
                                which records were deleted; -p-high where the score fell
kept-auc, ...                   the kept against held-out ones: what a deletion tells of those who
                                asked for nothing
"""

from jaxunlearn import evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import membership

check = membership.check


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """{} of a run that starts from no model, or whose records are not known."""
  if task.split is None or task.before is None:
    return {}
  split, before = membership.chosen(task.split, task), task.before()
  out: dict[str, evals.Value] = {}
  for name in task.options.membership_attacks:
    pair = [membership.scores_of(model, task, split, name) for model in (before, eps_fn)]
    falls = membership.Scores(*(old - new for old, new in zip(*pair, strict=True)))
    identity = f"models=2 {membership.identity_of(task, split, name)}"
    out |= membership.values(f"membership_change_{name}", falls, identity, task)
  return out
