"""The kinds of runs there are, and what the page and the card of each have to say."""

import dataclasses
import functools
from collections.abc import Callable

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
from tests.report_test import entry

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
  "later": "^Later runs delete ",
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
GONE = "The T-shirt is seen in 2 of 64 samples before, in 0 of 64 samples after. That leaves room"
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
    says=("Nothing was deleted: the T-shirt is in the training data",),
    never=NOT_A_DELETION,
  ),
  "retraining": Kind(
    make=retrain_mnist.get_config,
    kind="retraining",
    title="Training without the T-shirt, from scratch",
    fact=("Left out", "the T-shirt"),
    line="The T-shirt is seen in 0 of 64 samples after. That leaves room",
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
    line="The T-shirt is seen in 0 of 64 samples after.",
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
    says=("Earlier runs deleted 1 record,", "Later runs delete 48 records more,"),
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
    fact=(
      "Method",
      "ESD (η 1, partial 0, partial steps 50, partial guidance 2, partial batch 4)",
    ),
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
    line="No metric says whether airplane came back: the samples are kept for others.",
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
