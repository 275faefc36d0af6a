"""Membership inference: do scores of the model tell its records from held-out ones?

Of each attack in config.eval.membership_attacks (evals/attacks), named membership_ATTACK/WHAT:

kept-auc, -tpr-1, -tpr-01, -asr      records trained on and kept, against held-out ones of the same
                                     kind: how far the model tells its training set at all
deleted-auc, -tpr-1, -tpr-01, -asr   the same of the records to be forgotten, where there are 20
deleted-p                            of fewer: the conformal p-value that the record scores as low
                                     as a member does; of K records K times the smallest
deleted-p-high                       the same of the other end: a deletion that went too far shows

roc.py has the definitions. tpr-1 and tpr-01 are at a FPR of 1% and .1%, which takes 99 and 999
held-out records. The yardstick is the same number of a model trained without the records, not .5;
and all of it asks for held-out records of the same distribution as the others.
"""

import hashlib
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn, guidance
from jaxunlearn.evals import attacks, roc, statistics

FEW = 20  # records under which a rate says nothing, and each has a p-value instead
BATCH = 64
FPR = {"tpr-1": 0.01, "tpr-01": 0.001}


class Scores(NamedTuple):
  """Of one attack, float64 [N] of each part of an `evals.Split`."""

  kept: np.ndarray
  deleted: np.ndarray
  like_kept: np.ndarray
  like_deleted: np.ndarray


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """All that the records allow; {} where they are not known."""
  if task.split is None:
    return {}
  split = chosen(task.split, task)
  out: dict[str, evals.Value] = {}
  for name in task.options.membership_attacks:
    scores = scores_of(eps_fn, task, split, name)
    out |= values(f"membership_{name}", scores, identity_of(task, split, name), task)
  return out


def check(options: Any) -> None:
  """Raises ValueError where there is no such attack."""
  for name in options.membership_attacks:
    attacks.make(name)


def chosen(split: evals.Split, task: evals.Task) -> evals.Split:
  """So many of each part as the options say, at random; of the deleted each picture once."""
  options = task.options
  rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key("membership"))))
  some = lambda records, n: records.take(rng.permutation(len(records))[:n])
  like_kept = some(split.like_kept, options.membership_heldout)
  same = split.like_deleted is split.like_kept
  return evals.Split(
    kept=some(split.kept, options.membership_kept),
    deleted=_distinct(some(split.deleted, options.membership_deleted)),
    like_kept=like_kept,
    like_deleted=like_kept if same else some(split.like_deleted, options.membership_heldout),
  )


def _distinct(records: data.Records) -> data.Records:
  if not len(records):
    return records
  _, index = np.unique(records.image[np.arange(len(records))], axis=0, return_index=True)
  return records.take(np.sort(index))


def scores_of(eps_fn: EpsFn, task: evals.Task, split: evals.Split, name: str) -> Scores:
  """The scores of all records, without guidance; the noise of each is the same for every model."""
  attack, key = attacks.make(name), task.key(f"membership_{name}")
  predict = lambda x_t, t, c=None: _predict(guidance.unguided(eps_fn), x_t, t, c)

  def of(part: str) -> np.ndarray:
    rng = jax.random.fold_in(key, zlib.crc32(part.encode()))
    return _scores(attack, predict, task, getattr(split, part), rng)

  found = {part: of(part) for part in ("kept", "deleted", "like_kept")}
  same = split.like_deleted is split.like_kept
  return Scores(**found, like_deleted=found["like_kept"] if same else of("like_deleted"))


@jax.jit
def _predict(eps_fn: EpsFn, x_t: jax.Array, t: jax.Array, c: jax.Array | None) -> jax.Array:
  """One program for every attack, time and model: loops over the network are slow to compile."""
  return eps_fn(x_t, t, c)


def _scores(
  attack: attacks.Attack, predict: EpsFn, task: evals.Task, records: data.Records, rng: jax.Array
) -> np.ndarray:
  """[N] in batches of one size, the last one filled up."""
  out = np.empty(-(-len(records) // BATCH) * BATCH)
  for i, start in enumerate(range(0, len(records), BATCH)):
    index = np.minimum(np.arange(start, start + BATCH), len(records) - 1)
    x = jnp.asarray(task.codec.encode(data.to_model(records.image[index])))
    c = None if task.c is None else jnp.asarray(records.conditions[index])
    out[start : start + BATCH] = attack.score(
      predict, task.process, x, c, jax.random.fold_in(rng, i)
    )
  return out[: len(records)]


def values(group: str, scores: Scores, identity: str, task: evals.Task) -> dict[str, evals.Value]:
  """What one attack says, by the names above."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key(group))))
  deleted = rates if len(scores.deleted) >= FEW else p_values
  parts = {
    "kept": rates(scores.kept, scores.like_kept, rng),
    "deleted": deleted(scores.deleted, scores.like_deleted, rng),
  }
  return {
    f"{group}/{part}-{what}": evals.Value(value, ci95, f"{identity} {_counts(scores, part)}")
    for part, found in parts.items()
    for what, (value, ci95) in found.items()
  }


Found = dict[str, tuple[float, statistics.Interval | None]]


def rates(members: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> Found:
  """AUC, TPR and ASR with bootstrap intervals; {} where there are too few records."""
  if min(len(members), len(others)) < FEW:
    return {}
  both, parts = (members, others), (*_halves(members), *_halves(others))
  out = {"auc": (roc.auc(*both), statistics.bootstrap_of(roc.auc, both, rng))}
  for name, fpr in FPR.items():
    if roc.smallest_p(len(others)) <= fpr:
      found = lambda members, others, fpr=fpr: roc.tpr(members, others, fpr)
      out[name] = (found(*both), statistics.bootstrap_of(found, both, rng))
  out["asr"] = (roc.asr(*parts), statistics.bootstrap_of(roc.asr, parts, rng))
  return {name: (value, _shares(ci95)) for name, (value, ci95) in out.items()}


def p_values(members: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> Found:
  """The p-value of both ends, by Bonferroni where there are several members; {} of none."""
  del rng  # nothing is drawn
  if not len(members) or not len(others):
    return {}
  least = lambda p: min(1.0, len(p) * float(p.min()))
  low, high = roc.p_values(members, others), roc.p_values(-members, -others)
  return {"p": (least(low), None), "p-high": (least(high), None)}


def _halves(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The records stand in random order."""
  return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _shares(ci95: statistics.Interval | None) -> statistics.Interval | None:
  """An interval of a number that lies in [0, 1]."""
  return ci95 and (max(0.0, ci95[0]), min(1.0, ci95[1]))


def _counts(scores: Scores, part: str) -> str:
  others = len(getattr(scores, f"like_{part}"))
  least = f"{roc.smallest_p(others):.2g}"
  return evals.identity(members=len(getattr(scores, part)), heldout=others, smallest_p=least)


def identity_of(task: evals.Task, split: evals.Split, name: str) -> str:
  """The attack with its settings, the records, what is to be forgotten, and the model."""
  attack = attacks.make(name)
  fields = {key: _short(value) for key, value in vars(attack).items()}
  prints = " ".join(records.fingerprint() for records in split)
  digest = hashlib.sha256(prints.encode()).hexdigest()[:8]
  subject = task.target_identity
  if task.concept is not None:
    subject = f"concept={task.concept_name.replace(' ', '-')}"
  facts = evals.identity(attack=name, **fields, records=digest)
  return f"{facts} {subject} {task.model_identity}"


def _short(value: Any) -> Any:
  """`10..200/20` of twenty times from 10 to 200."""
  return f"{value[0]}..{value[-1]}/{len(value)}" if isinstance(value, tuple | list) else value
