"""The plain words of a report: each rule on results made by hand, and what it must not claim."""

import pytest

from jaxunlearn.reports import evidence
from jaxunlearn.reports.said import AGAINST, FOR, UNKNOWN
from tests.pages_test import config_of
from tests.report_test import entry

PIXELS = "extractor=pixels sampler=ddpm n=512"
DELETION = config_of("unlearning the T-shirt")
RATE = {
  "before": {"tshirt_rate": entry(0.031, [0.019, 0.05], PIXELS)},
  "after": {"tshirt_rate": entry(0.0, [0.0, 0.0074], PIXELS)},
}


def said(before, after, metric, config=DELETION, **more):
  """(side, text) of the one sentence on a metric."""
  results = {k: v for k, v in (("before", before), ("after", after)) if v is not None}
  (one,) = [s for s in evidence.evidence(config, results, **more) if s.metric == metric]
  return one.side, one.text


def pia(low=None, high=None, auc=None, kept=None, smallest="0.001", attack="pia", records="ab"):
  """The values of a membership attack in one phase."""
  how = f"attack={attack} records={records} members=1 heldout=1000 smallest_p={smallest}"
  group, out = f"membership_{attack}", {}
  if auc:
    out[f"{group}/deleted-auc"] = entry(sum(auc) / 2, list(auc), how)
  if low is not None:
    out[f"{group}/deleted-p"] = entry(low, None, how)
    out[f"{group}/deleted-p-high"] = entry(high, None, how)
  if kept:
    out[f"{group}/kept-auc"] = entry(sum(kept) / 2, list(kept), how)
  return out


BLIND, SEES = (0.45, 0.51), (0.55, 0.65)
P, AUC = "membership_pia/deleted-p", "membership_pia/deleted-auc"


@pytest.mark.parametrize(
  ("before", "after", "side", "words"),
  [
    (
      (0.031, 0.019, 0.05),
      (0, 0, 0.0074),
      FOR,
      "Fewer samples show the T-shirt: T-shirt rate 0.031",
    ),
    (
      (0.031, 0.019, 0.05),
      (0.03, 0.02, 0.05),
      AGAINST,
      "Samples show the T-shirt no less than before",
    ),
    (
      (0.031, 0.019, 0.05),
      (0.09, 0.07, 0.12),
      AGAINST,
      "Samples show the T-shirt no less than before",
    ),
    (
      (0.031, 0.01, 0.1),
      (0, 0, 0.056),
      UNKNOWN,
      "Whether fewer samples show the T-shirt is not clear",
    ),
    ((0, 0, 0.0074), (0, 0, 0.0074), UNKNOWN, "Samples did not show the T-shirt before either, so"),
    (None, (0, 0, 0.0074), FOR, "No sample shows the T-shirt: T-shirt rate 0 [0, 0.0074]."),
    (None, (0.1, 0.05, 0.2), AGAINST, "Samples show the T-shirt: T-shirt rate 0.1 [0.05, 0.2]."),
    (None, ("nan", 0, 1), UNKNOWN, "Measured after alone"),
  ],
)
def test_a_rate(before, after, side, words):
  phase = lambda v: v and {"tshirt_rate": entry(v[0], list(v[1:]), PIXELS)}
  got, text = said(phase(before), phase(after), "tshirt_rate")
  assert (got, text.startswith(words)) == (side, True), text


def test_a_sentence_has_its_values_and_its_identity():
  (one,) = [s for s in evidence.evidence(DELETION, RATE | {}) if s.metric == "tshirt_rate"]
  assert one.text.endswith(": T-shirt rate 0.031 [0.019, 0.05] → 0 [0, 0.0074].")
  assert one.identity == PIXELS
  assert evidence.as_data([one]) == [one._asdict()]


def test_what_was_measured_differently_or_is_no_number_is_not_compared():
  value = lambda v, how="solver=a": {"nll_bpd": entry(v, None, how)}
  assert said(value(1.2), value(7.9), "nll_bpd")[0] == FOR
  assert said(value(1.2), value(1.21), "nll_bpd")[0] == AGAINST
  side, text = said(value(1.2), value(7.9, "solver=b"), "nll_bpd")
  assert side == UNKNOWN and text.startswith("Measured in two ways (solver), so not to be compared")
  assert said(value(1.2), value("nan"), "nll_bpd")[0] == UNKNOWN
  assert said(None, value(7.9), "nll_bpd")[0] == UNKNOWN


def test_harm_to_what_is_kept_is_told():
  score = lambda v, low, high: {"inception_score": entry(v, [low, high])}
  before = score(7.0, 6.5, 7.5)
  assert said(before, score(6.8, 6.4, 7.2), "inception_score")[0] == FOR
  side, text = said(before, score(1.2, 1.1, 1.3), "inception_score")
  assert side == AGAINST
  assert text.startswith(
    "What is kept got worse, so that not seeing the T-shirt may be harm and no for"
  )
  assert said(before, score(6.2, 5.7, 6.7), "inception_score")[0] == UNKNOWN
  assert said(before, score("nan", "nan", "nan"), "inception_score")[0] == AGAINST


@pytest.mark.parametrize(
  ("before", "after", "side", "words"),
  [
    (pia(0.5, 0.5), pia(0.4, 0.6, kept=SEES), FOR, "does not find the deleted records, and sees"),
    (pia(0.001, 1.0), pia(0.4, 0.6, kept=BLIND), FOR, "found the deleted records before (p 0.001"),
    (pia(0.5, 0.5), pia(0.4, 0.6, kept=BLIND), UNKNOWN, "is blind in this model (AUC of the kept"),
    (None, pia(0.4, 0.6), UNKNOWN, "is blind in this model (the kept were not measured)"),
    (
      None,
      pia(0.001, 1.0, kept=BLIND),
      AGAINST,
      "finds the deleted records still, unless it does so in a model that was",
    ),
    (None, pia(1.0, 0.001, kept=SEES), AGAINST, "by the other end, as ones that were pushed away"),
    (None, pia(0.04, 0.96, kept=SEES), UNKNOWN, "gives no clear answer on the deleted"),
    (None, pia(0.1, 0.9, kept=SEES, smallest="0.1"), UNKNOWN, "too few held-out records"),
    (None, pia("nan", 1.0, kept=SEES), UNKNOWN, "gives no clear answer on the deleted"),
  ],
)
def test_a_membership_attack_by_p_values(before, after, side, words):
  got, text = said(before, after, P)
  assert (got, words in text) == (side, True), text


@pytest.mark.parametrize(
  ("auc", "kept", "side"),
  [
    ((0.6, 0.8), BLIND, AGAINST),
    ((0.2, 0.4), BLIND, AGAINST),
    ((0.45, 0.55), BLIND, UNKNOWN),
    ((0.45, 0.55), (0.3, 0.4), UNKNOWN),  # the sets differ: that is no sight
    ((0.45, 0.55), SEES, FOR),
  ],
)
def test_a_membership_attack_by_auc(auc, kept, side):
  assert said(None, pia(auc=auc, kept=kept), AUC)[0] == side


def test_several_attacks_ask_for_smaller_p_values():
  """One of two attacks with p .02 is no finding, alone it is."""
  alone, other = pia(0.02, 0.98, kept=SEES), pia(0.4, 0.6, attack="secmi")
  assert said(None, alone, P)[0] == AGAINST
  assert said(None, alone | other, P)[0] == UNKNOWN


def test_what_a_model_without_the_records_does_too_is_no_sign_of_memory():
  after = pia(1.0, 0.001, kept=SEES)
  side, text = said(None, after, P, yardstick=pia(1.0, 0.002))
  assert side == UNKNOWN and "in a model that was trained without them too (p 1" in text
  for other in (pia(0.4, 0.6), pia(1.0, 0.002, records="cd"), pia(0.001, 1.0)):
    assert said(None, after, P, yardstick=other)[0] == AGAINST
  text = said(None, after, P, yardstick=pia(0.4, 0.6))[1]
  assert "; in a model that was trained without them it does not (p 0.4, of the other" in text


def test_what_the_change_gives_away_is_said_and_is_on_neither_side():
  change = lambda low, high: {
    name.replace("membership_", "membership_change_"): value
    for name, value in pia(low, high, kept=(0.51, 0.6)).items()
  }
  name = "membership_change_pia/deleted-p"
  assert said(None, change(0.001, 1.0), name) == (
    UNKNOWN,
    "Who has the model before and after, by the attack pia, can tell which records were deleted: "
    "p 0.001, of the other end 1.",
  )
  assert "does not see which records were deleted" in said(None, change(0.4, 0.6), name)[1]
  kept = said(None, change(0.4, 0.6), "membership_change_pia/kept-auc")
  assert kept[0] == UNKNOWN and "can tell something of the kept: AUC 0.555 [0.51, 0.6]" in kept[1]


@pytest.mark.parametrize(
  ("words", "side"),
  [
    ("nearer the original, p 0.002", AGAINST),
    ("nearer the retrained, p 0.01", FOR),
    ("undecided, p 0.4", UNKNOWN),
    ("divergences disagree, p 0.01", UNKNOWN),
  ],
)
def test_the_verdict_of_three_samples(words, side):
  after = {"verdict": entry(0.1) | {"words": words}}
  assert said(None, after, "verdict") == (
    side,
    next(s.text for s in evidence.evidence(DELETION, {"after": after}) if words in s.text),
  )


def attacked(name, before, after):
  rate = lambda v: {"tshirt_rate": entry(v[0], list(v[1:]), PIXELS)}
  results = {"before": rate(before), "after": rate(after)}
  return evidence.Attack("a1", config_of(name), results, ())


GONE, BACK = (0, 0, 0.0074), (0.2, 0.15, 0.25)


@pytest.mark.parametrize(
  ("name", "after", "side", "words"),
  [
    (
      "attack, kept",
      BACK,
      AGAINST,
      "brought back the T-shirt without an image of it: T-shirt rate 0",
    ),
    ("attack, 10", BACK, UNKNOWN, "of which it was shown images; only the same attack on a model"),
    ("attack, 10", GONE, FOR, "did not bring back the T-shirt; longer ones, or others, may"),
  ],
)
def test_an_attack_from_this_run(name, after, side, words):
  got, text = said(None, RATE["after"], "a1", attacks=[attacked(name, GONE, after)])
  assert (got, words in text) == (side, True), text
  assert text.startswith("The attack a1, 30 steps on ")


def test_an_attack_is_told_by_its_probes_where_there_are_some():
  probes = [{"step": 5, "probe_ar": 0.1}, {"step": 10, "probe_ar": 0.75}]
  one = evidence.Attack("a1", config_of("attack, kept"), {}, probes)
  side, text = said(None, RATE["after"], "a1", attacks=[one])
  assert side == AGAINST and "AR 0.75 at most, at step 10 of its 2 evaluations" in text
  silent = evidence.Attack("a1", config_of("attack, kept"), {}, ())
  assert said(None, RATE["after"], "a1", attacks=[silent])[0] == UNKNOWN


def test_how_it_was_trained_and_what_is_missing():
  assert said(None, {}, "after") == (UNKNOWN, "Nothing was measured after the deletion.")
  assert said(None, RATE["after"], "before")[0] == UNKNOWN
  assert said(None, RATE["after"], "attack")[0] == UNKNOWN
  assert said(None, RATE["after"], "training")[0] == UNKNOWN
  retrained = config_of("retraining")
  assert said(None, RATE["after"], "training", retrained)[0] == FOR
  metrics = {one.metric for one in evidence.evidence(retrained, {"after": RATE["after"]})}
  assert not metrics & {"before", "attack"}


def test_an_attack_and_runs_that_delete_nothing():
  results = {"before": {"ar": entry(0.1)}, "after": {"ar": entry(0.9)}}
  sides = [one.side for one in evidence.evidence(config_of("attack, 10"), results)]
  assert sides == [AGAINST]
  for name in ("pretraining", "compartments", "as it is"):
    assert evidence.evidence(config_of(name), RATE) == []
  assert evidence.cards([]) == [("What speaks for forgetting", []), ("What speaks against", [])]
