"""Every kind of run: its page and its card say what its config did, sentence by sentence."""

import dataclasses
import functools
import json
import re
import types
from collections.abc import Callable

import pytest

from configs import (
  attack_cifar10_full,
  attack_fashion,
  audits,
  cdm_digits_clothes,
  pretrain_fashion,
  pretrain_mnist,
  pretrain_styles,
  retrain_fashion,
  retrain_mnist,
  siss_celeba_sequence,
  siss_emoji,
  siss_mnist,
  unlearn_fashion,
)
from jaxunlearn.reports import model_card, report, subject, verdict
from tests.report_test import Page, entry

MADE = "sampler=ddpm steps=25 n=64 seed=0"
PIXELS, JUDGE = f"extractor=pixels {MADE}", f"asked=24 extractor=fashion_classifier:ab12 {MADE}"
TSHIRT = {
  "before": {
    "tshirt_rate": entry(0.03125, [0.01, 0.1], PIXELS),
    "nll_bpd": entry(1.2, None, "s=1"),
  },
  "after": {"tshirt_rate": entry(0.0, [0.0, 0.0566], PIXELS), "nll_bpd": entry(7.9, None, "s=1")},
}
UNLEARNED = {
  "before": {"ua": entry(0.0, [0.0, 0.14], JUDGE), "ar": entry(1.0, [0.86, 1.0], JUDGE)},
  "after": {"ua": entry(0.875, [0.69, 0.96], JUDGE), "ar": entry(0.125, [0.04, 0.31], JUDGE)},
}
ATTACKED = {"before": UNLEARNED["after"], "after": UNLEARNED["before"]}
COMPOSED = {
  "naive": {"feature_fid": entry(50.0, [45.0, 55.0], PIXELS)},
  "top1": {"feature_fid": entry(12.0, [10.0, 14.0], PIXELS)},
  "alone_class-0": {"feature_fid": entry(30.0, [28.0, 32.0], PIXELS)},
}
PROBES = [{"step": 5, "probe_ar": 0.25}, {"step": 10, "probe_ar": 0.75}, {"step": 30, "loss_x": 1}]

# Each sentence that the limits may have.
LIMITS = {
  "not attacked": "^A relearning attack was not run",
  "one attack": "^One attack was run: ",
  "saw nothing": "^The attack was shown no image of ",
  "saw images": "^The attack was shown images of ",
  "one vector": "^It trained one vector",
  "probes": "^The probes on the way are every ",
  "no before": "^There is no evaluation before",
  "no after": "^There is no evaluation after",
  "no metric": "^The config asks for no metric after",
  "still there": "^Nothing was deleted: .* is in the training data",
  "never saw": "^The model never saw the records",
  "fine-tuned": "^The weights were fine-tuned, not retrained",
  "earlier": "^Earlier runs deleted ",
  "later": "^No stream of this run has ",
  "control": "^This method is a control",
  "compartments": "^A source that is deleted goes exactly",
  "monolith": "^One network has seen all of the data: nothing can be deleted",
  "one seed": "^The intervals are sampling error alone: .*training seed 0",
  "zero": "is 0 of 64 samples. That bounds the rate by 5.66%",
  "elsewhere": "^Behaviour elsewhere may have changed.*samples 64; sampler ddpm; sampling steps 25",
  "averaged": "^Samples and metrics are of the averaged parameters",
  "pixels": "^By pixels: ",
  "judge": "^By a small classifier of this project",
  "no proof": "^A rate of 0 is no proof of forgetting",  # of the card
}
MEASURED = {"one seed", "elsewhere"}
DELETED = {"not attacked", "fine-tuned"}


@dataclasses.dataclass(frozen=True)
class Kind:
  """A run and what is to be said of it."""

  make: Callable
  kind: str
  title: str
  fact: tuple[str, str]  # of the header
  line: str  # the verdict
  headline: str
  limits: set[str]
  card: str  # of its section What was deleted; "" where no card is made
  results: dict = dataclasses.field(default_factory=dict)
  says: tuple[str, ...] = ()  # what its limits say
  never: tuple[str, ...] = ("Relearning", "came back")  # anywhere on page or card


def with_forget(make, **forget):
  config = make()
  config.forget.update(label="", copies="keep", **forget)
  return config


def of_style():
  config = unlearn_fashion.unlearning(
    pretrain_styles.get_config(), "assets:pretrain_styles", "dimum"
  )
  config.forget.style = "twemoji"
  return config


def after(results):
  return {"after": results["after"]}


def attack(variant, title, shown, extra, method="denoising loss"):
  return Kind(
    make=functools.partial(attack_fashion.get_config, variant),
    kind="attack",
    title=f"Relearning Trouser {title}, on runs/dimum",
    fact=("Shown", shown),
    line="Trouser came back: first recovered at step 10. UA 0.88 → 0.",
    headline="Trouser UA 0.88 -> 0, first recovered at step 10",
    limits={"one attack", "probes", "judge", *MEASURED, *extra},
    card=f"Nothing: this run is an attack. .* had unlearned `Trouser`, learns from `{shown}`,",
    results=ATTACKED,
    says=(
      f"One attack was run: 30 steps at a learning rate of 0.001, learning from {shown}.",
      "every 5 steps, on 32 samples each",
    ),
    never=("Deleting", "Unlearning", "was not run", "was not evaluated", "Nothing was measured"),
  )


NOT_AN_ATTACK = ("Relearning", "came back", "One attack")
NOT_A_DELETION = (*NOT_AN_ATTACK, "Deleting", "Unlearning", "was not run")
GONE = "T-shirt is seen in 2 of 64 samples before, in 0 of 64 samples after. That leaves room"
TSHIRT_HEADLINE = "T-shirt 3.1% -> 0% (under 5.7%)"
TROUSER = "Trouser is seen in 24 of 24 samples asked for it before, in 3 of 24 samples asked for it"

KINDS = {
  "pretraining": Kind(
    make=pretrain_fashion.get_config,
    kind="training",
    title="Training on Fashion-MNIST",
    fact=("Deleted", "nothing"),
    line="Inception score 7.2.",
    headline="inception score 7.2",
    limits={"averaged", "pixels", *MEASURED},
    card="Nothing: no record was kept out",
    results={"after": {"inception_score": entry(7.2, [7.0, 7.4], PIXELS)}},
    never=NOT_A_DELETION,
  ),
  "pretraining, looked for": Kind(
    make=pretrain_mnist.get_config,
    kind="training",
    title="Training on digits and a T-shirt",
    fact=("Deleted", "nothing"),
    line="The quality of the samples was not measured.",
    headline="nothing was evaluated",
    limits={"still there", "no after"},
    card="Nothing: no record was kept out",
    says=("Nothing was deleted: T-shirt is in the training data",),
    never=NOT_A_DELETION,
  ),
  "retraining": Kind(
    make=retrain_mnist.get_config,
    kind="retraining",
    title="Training without the T-shirt, from scratch",
    fact=("Left out", "the T-shirt"),
    line="T-shirt is seen in 0 of 64 samples after. That leaves room",
    headline="T-shirt 0% (under 5.7%)",
    limits={"never saw", "averaged", "zero", "pixels", *MEASURED},
    card="Left out by this run: 263 records",
    results=after(TSHIRT),
    never=(*NOT_AN_ATTACK, "was not run", "fine-tuned", "Deleted by"),
  ),
  "retraining without a class": Kind(
    make=retrain_fashion.get_config,
    kind="retraining",
    title="Training without the class Trouser, from scratch",
    fact=("Left out", "the class Trouser"),
    line="Trouser is seen in 3 of 24 samples asked for it after.",
    headline="Trouser UA 0.88",
    limits={"never saw", "averaged", "judge", *MEASURED},
    card="Left out by this run: 900 records",
    results=after(UNLEARNED),
    never=(*NOT_AN_ATTACK, "was not run", "fine-tuned", "Deleted by"),
  ),
  "naive deletion": Kind(
    make=lambda: siss_mnist.get_config("naive"),
    kind="naive",
    title="Deleting the T-shirt by training on the rest",
    fact=("Deleted", "the T-shirt"),
    line=GONE,
    headline=TSHIRT_HEADLINE,
    limits={*DELETED, "zero", "pixels", *MEASURED},
    card="Deleted by this run: 263 records",
    results=TSHIRT,
  ),
  "unlearning the T-shirt": Kind(
    make=siss_mnist.get_config,
    kind="unlearning",
    title="Deleting the T-shirt with SISS",
    fact=("Deleted", "the T-shirt"),
    line=GONE,
    headline=TSHIRT_HEADLINE,
    limits={*DELETED, "zero", "pixels", *MEASURED},
    card="Deleted by this run: 263 records",
    results=TSHIRT,
  ),
  "unlearning a file": Kind(
    make=siss_emoji.get_config,
    kind="unlearning",
    title="Deleting every copy of 1 file (sha256:",
    fact=("Method", "SISS (λ 0.5, forget ratio 0.1, stratified, skip below 1e-08)"),
    line="Nothing was measured after",
    headline="nothing was evaluated",
    limits={*DELETED, "no before", "no after"},
    card="Deleted by this run: ",
  ),
  "unlearning ids": Kind(
    make=lambda: with_forget(siss_mnist.get_config, ids=("tshirt/00003",)),
    kind="unlearning",
    title="Deleting 1 record (tshirt/00003) with SISS",
    fact=("Deleted", "1 record (tshirt/00003)"),
    line=GONE,
    headline=TSHIRT_HEADLINE,
    limits={*DELETED, "zero", "pixels", *MEASURED},
    card="Deleted by this run: 1 record[.]",
    results=TSHIRT,
  ),
  "a sequence": Kind(
    make=lambda: with_forget(
      siss_mnist.get_config, ids=("tshirt/00003",), earlier=("tshirt/00001", "tshirt/00002")
    ),
    kind="unlearning",
    title="Deleting 1 record (tshirt/00003) with SISS, after 2 earlier deletions",
    fact=("Deleted", "1 record (tshirt/00003)"),
    line="T-shirt is seen in 0 of 64 samples after.",
    headline="T-shirt 0% (under 5.7%)",
    limits={*DELETED, "earlier", "no before", "zero", "pixels", *MEASURED},
    card="Deleted by runs before it: 2 records",
    results=after(TSHIRT),
    says=("Earlier runs deleted 2 records,",),
  ),
  "the celebA sequence": Kind(
    make=lambda: siss_celeba_sequence.get_config().runs.face_02,
    kind="unlearning",
    title="Deleting 1 record (10001.jpg) with SISS, after 1 earlier deletion",
    fact=("Started from", "run:face_01"),
    line="Nothing was measured after",
    headline="nothing was evaluated",
    limits={*DELETED, "earlier", "later", "no before", "no after"},
    card="",
    says=("Earlier runs deleted 1 record,", "has 48 more records either"),
  ),
  "unlearning a class": Kind(
    make=unlearn_fashion.get_config,
    kind="unlearning",
    title="Unlearning the class Trouser with DiMUM",
    fact=("Deleted", "the class Trouser"),
    line=TROUSER,
    headline="Trouser UA 0 -> 0.88",
    limits={*DELETED, "judge", *MEASURED},
    card="Deleted by this run: 900 records",
    results=UNLEARNED,
  ),
  "a method without kept data": Kind(
    make=lambda: unlearn_fashion.get_config("esd"),
    kind="unlearning",
    title="Unlearning the class Trouser with ESD",
    fact=("Method", "ESD (η 1)"),
    line=TROUSER,
    headline="Trouser UA 0 -> 0.88",
    limits={*DELETED, "judge", *MEASURED},
    card="Deleted by this run: 900 records",
    results=UNLEARNED,
  ),
  "unlearning a style": Kind(
    make=of_style,
    kind="unlearning",
    title="Unlearning the style twemoji with DiMUM",
    fact=("Deleted", "the style twemoji"),
    line="Twemoji is seen in 3 of 24 samples asked for it after.",
    headline="Twemoji UA 0.88",
    limits={*DELETED, "no before", "judge", *MEASURED},
    card="Deleted by this run: ",
    results=after(UNLEARNED),
  ),
  "the control": Kind(
    make=lambda: unlearn_fashion.get_config("embedding_copy"),
    kind="unlearning",
    title="Unlearning the class Trouser with embedding copy, a control",
    fact=("Method", "embedding copy, a control"),
    line=TROUSER,
    headline="Trouser UA 0 -> 0.88",
    limits={"not attacked", "control", "judge", *MEASURED},
    card="Deleted by this run: 900 records",
    results=UNLEARNED,
  ),
  "attack, kept": attack("dimra_retain", "from what is kept", "what is kept", {"saw nothing"}),
  "attack, samples": attack(
    "dimra_samples",
    "from samples of runs/pretrained",
    "samples of runs/pretrained",
    {"saw nothing"},
  ),
  "attack, other data": attack(
    "dimra_public",
    "from other data, digits and a T-shirt",
    "other data, digits and a T-shirt",
    {"saw nothing"},
  ),
  "attack, 1": attack("few_1", "from 1 image", "1 image", {"saw images"}),
  "attack, 10": attack("few_10", "from 10 images", "10 images", {"saw images"}),
  "attack, 100": attack("few_100", "from 100 images", "100 images", {"saw images"}),
  "attack, inversion": attack(
    "inversion",
    "by its embedding alone, from 100 images",
    "100 images",
    {"saw images", "one vector"},
  ),
  "attack, judged outside": Kind(
    make=lambda: attack_cifar10_full.get_config("few_10"),
    kind="attack",
    title="Relearning airplane from 10 images, on runs/dimum_cifar10",
    fact=("Shown", "10 images"),
    line="No metric says whether Airplane came back: the samples are kept for others.",
    headline="not measured",
    limits={"one attack", "saw images", "no before", "no metric"},
    card="",
    results={"after": {}},
    never=("Deleting", "Unlearning", "was not run"),
  ),
  "compartments": Kind(
    make=cdm_digits_clothes.get_config,
    kind="compartments",
    title="4 compartments of digits and clothes, split by class",
    fact=("Deleted", "nothing"),
    line="Feature FID 12 at best (the largest weight alone), 50 at worst (plain average); a source",
    headline="Feature FID 12 at best (the largest weight alone), 50 at worst (plain average)",
    limits={"compartments", "averaged", "pixels", *MEASURED},
    card="",
    results=COMPOSED,
    never=NOT_A_DELETION,
  ),
  "the monolith": Kind(
    make=lambda: cdm_digits_clothes.get_config("uniform1"),
    kind="compartments",
    title="One network for all of digits and clothes, the monolith",
    fact=("Each source", "a network of its own"),
    line="Feature FID 50 at best (plain average).",
    headline="Feature FID 50 at best (plain average).",
    limits={"monolith", "averaged", "pixels", *MEASURED},
    card="",
    results={"naive": COMPOSED["naive"]},
    never=(*NOT_A_DELETION, "compartments"),
  ),
  "as it is": Kind(
    make=lambda: with_label(audits.as_it_is, "assets:retrain_fashion_trouser"),
    kind="measuring",
    title="Measuring assets:retrain_fashion_trouser, as it is",
    fact=("Looked for", "the class Trouser"),
    line="Trouser is seen in 3 of 24 samples asked for it after.",
    headline="Trouser UA 0.88",
    limits={"judge", *MEASURED},
    card="Nothing: no record was kept out",
    results=after(UNLEARNED),
    never=(*NOT_A_DELETION, "fine-tuned"),
  ),
}


def with_label(make, origin):
  config = make(pretrain_fashion.get_config(), origin)
  config.forget.label = "Trouser"
  return config


@functools.cache
def config_of(name):
  return json.loads(KINDS[name].make().to_json())


def lines_of(kind):
  return PROBES if kind.kind == "attack" and kind.results.get("after") else []


def found(sentences):
  """Which limits they are; a sentence that is none of them fails."""
  which = [[key for key, words in LIMITS.items() if re.search(words, s)] for s in sentences]
  assert all(len(keys) == 1 for keys in which), list(zip(sentences, which, strict=True))
  return [keys[0] for keys in which]


def limits_on(html):
  section = html[html.index("What is not proven") : html.index("<h2>Config</h2>")]
  return [Page(item).text for item in re.findall(r"<li>(.*?)</li>", section, re.DOTALL)]


@pytest.mark.parametrize("name", KINDS)
def test_the_page_says_what_the_config_did(name):
  kind, config = KINDS[name], config_of(name)
  assert subject.kind(config) == kind.kind
  html = report.page(config, lines_of(kind), kind.results, {})
  head, body = html[: html.index("<h2>Config</h2>")], limits_on(html)
  (title,) = re.findall(r"<h1>(.*?)</h1>", html)
  assert Page(title).text.startswith(kind.title)
  facts = [
    (Page(a).text, Page(b).text) for a, b in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)
  ]
  assert kind.fact in facts
  (line,) = re.findall(r'<p class="line">(.*?)</p>', html)
  assert Page(line).text.startswith(kind.line)
  assert sorted(found(body)) == sorted(kind.limits)
  for words in kind.says:
    assert words in " ".join(body)
  for words in kind.never:
    assert words not in Page(head).text, words
  assert ("Nothing was evaluated yet" in head) == (not kind.results)
  assert ("No metric was asked for" in head) == (kind.results == {"after": {}})


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.card])
def test_the_card_says_the_same(name, tmp_path):
  kind, config = KINDS[name], config_of(name)
  (tmp_path / "evals").mkdir()
  for phase, values in kind.results.items():
    (tmp_path / "evals" / f"{phase}.json").write_text(json.dumps(values))
  lines = "".join(json.dumps(line) + "\n" for line in lines_of(kind))
  (tmp_path / "metrics.jsonl").write_text(lines)
  item = "ema" if config["ema"] else "params"
  options = model_card.Options(deleted="count")
  card = model_card.render(tmp_path, config, item, 30, options)
  told, _, rest = card.partition("## What was deleted")[2].partition("## Evaluation")
  assert re.search(kind.card, " ".join(told.split()))
  assert kind.line in rest
  limits = rest.partition("own records go:")[2].strip().splitlines()
  proof = {"no proof"} if " by this run:" in told else set()
  assert sorted(found([line.removeprefix("- ") for line in limits])) == sorted(kind.limits | proof)
  for words in kind.never:
    assert words not in card, words
  title = next(line for line in card.splitlines() if line.startswith("# "))
  assert ("attack" in title) == (kind.kind == "attack")
  assert ("deleted by" in title) == (kind.kind in ("naive", "unlearning"))
  assert ("left out by" in title) == (kind.kind == "retraining")


@pytest.mark.parametrize("name", KINDS)
def test_the_headline_is_one_line(name):
  kind = KINDS[name]
  said = report.headline(kind.results, config_of(name), lines_of(kind))
  assert said.startswith(kind.headline) and "\n" not in said


# The verdict.


def test_compositions_are_told_apart_by_their_intervals():
  said = verdict.verdict(config_of("compartments"), COMPOSED)
  assert said.line.endswith("50 at worst (plain average); a source alone 30.")
  assert said.pro == ("Better than the best source alone, 30: 12 (the largest weight alone).",)
  assert said.contra[0] == "Not clearly better than the best source alone, 30: 50 (plain average)."
  alike = {"naive": COMPOSED["naive"], "soft": {"feature_fid": entry(49.0, [44.0, 54.0], PIXELS)}}
  assert verdict.verdict(config_of("compartments"), alike).line == (
    "Feature FID 49 at best (weighted by the router), 50 at worst (plain average), "
    "no clear difference."
  )


def judged(before, after, config="unlearning the T-shirt"):
  return verdict.verdict(config_of(config), {"before": before, "after": after})


def test_what_speaks_for_a_deletion_and_what_against():
  before = TSHIRT["before"] | {
    "copy_score": entry(0.95),
    "inception_score": entry(7.0, [6.5, 7.5]),
    "feature_fid": entry(50.0, [40.0, 60.0]),
  }
  after = TSHIRT["after"] | {
    "copy_score": entry(0.94),
    "inception_score": entry(6.8, [6.4, 7.2]),
    "feature_fid": entry(90.0, [80.0, 99.0]),
  }
  said = judged(before, after)
  assert said.pro == (
    "Surprise at the target 1.2 → 7.9 (+558%).",
    "Inception score 7 → 6.8 (-3%), no clear change.",
  )
  assert said.contra == (
    "T-shirt rate 0.0312 → 0 (-100%), no clear change.",  # of 64 samples each
    "Copy score 0.95 → 0.94 (-1%), no clear change.",
    "Feature FID 50 → 90 (+80%).",
  )


def test_what_was_measured_differently_speaks_neither_for_nor_against():
  other = entry(7.9, None, "solver=other")
  said = judged({"nll_bpd": entry(1.2)}, {"nll_bpd": other})
  assert said.pro == said.contra == ()


def test_a_deletion_without_a_before_says_so():
  said = verdict.verdict(config_of("unlearning the T-shirt"), after(TSHIRT))
  assert said.pro == ("T-shirt rate 0.",)
  assert said.contra[-1].startswith("Nothing was measured before")


def test_the_rarest_values_break_nothing():
  odd = {"tshirt_rate": entry("nan", None, PIXELS), "inception_score": entry(0.0)}
  for phases in ((odd, odd), (TSHIRT["before"], odd), (odd, TSHIRT["after"])):
    said = judged(*phases)
    assert said.line and "None" not in said.line


def at(ar):
  return {"ua": entry(1 - ar, None, JUDGE), "ar": entry(ar, None, JUDGE)}


@pytest.mark.parametrize(
  "before, probes, after, line, step",
  [
    (0.0, (0.2, 0.6, 0.9), 1.0, "Trouser came back: first recovered at step 20. UA 1 → 0.", 20),
    (0.0, (0.2, 0.3, 0.4), 0.9, "Trouser came back: first recovered at step 30. UA 1 → 0.1.", 30),
    (0.0, (0.2, 0.6, 0.1), 0.1, "Trouser came back: first recovered at step 20. UA 1 → 0.9.", 20),
    (0.0, (0.1, "nan", 0.2), 0.2, "Trouser did not come back in 30 steps. UA 1 → 0.8.", None),
    (0.7, (0.9, 0.9, 0.9), 0.9, "Trouser was there before the attack began. UA 0.3 → 0.1.", 0),
  ],
)
def test_an_attack_is_told_by_its_first_recovery(before, probes, after, line, step):
  config, results = config_of("attack, 10"), {"before": at(before), "after": at(after)}
  lines = [{"step": 10 * i, "probe_ar": ar} for i, ar in enumerate(probes, start=1)]
  assert verdict.first_recovery(results, lines) == step
  said = verdict.verdict(config, results, lines)
  assert said.line.strip() == line
  assert bool(said.contra) == (step is not None)
  where = "not recovered" if step is None else f"first recovered at step {step}"
  assert report.headline(results, config, lines).endswith(where)


def test_an_attack_without_evaluations_is_told_by_its_probes():
  said = verdict.verdict(config_of("attack, 10"), {}, PROBES)
  assert said.line.strip() == "Trouser came back: first recovered at step 10."


def test_what_an_attack_cost_is_told():
  kept = lambda ira, low, high: {"ira": entry(ira, [low, high], JUDGE)}
  results = {"before": at(0.1) | kept(0.9, 0.8, 1.0), "after": at(0.9) | kept(0.1, 0.0, 0.2)}
  said = verdict.verdict(config_of("attack, 10"), results)
  assert said.pro == ("The attack cost what is kept: kept accuracy 0.9 → 0.1 (-89%).",)


def test_a_headline_has_what_went_and_what_it_cost():
  more = lambda value: {"inception_score": entry(value)}
  results = {
    "before": TSHIRT["before"] | more(7.0),
    "after": TSHIRT["after"] | more(6.79),
  }
  said = report.headline(results, config_of("unlearning the T-shirt"))
  assert said == "T-shirt 3.1% -> 0% (under 5.7%), inception score -3%"


@pytest.mark.parametrize(
  ("name", "records", "done", "says"),
  [
    ("unlearning the T-shirt", 63, 0, "with SISS (63 records), from assets:pretrain_mnist: "),
    ("unlearning the T-shirt", 1, 7, "(1 record), from assets:pretrain_mnist: "),
  ],
)
def test_a_run_opens_with_one_line(name, records, done, says):
  config = config_of(name)
  said = subject.opening(config, records, [types.SimpleNamespace(device_kind="cpu")] * 2, done)
  assert said.startswith(f"{subject.title(config)} ") and says in said and "\n" not in said
  assert said.endswith(f"{', going on after step 7' if done else ''}, on 2 x cpu")
