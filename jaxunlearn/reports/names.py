"""Names that a reader knows, for what a run calls by its fields: metrics, logs, methods, data."""

from collections.abc import Mapping
from typing import Any

ENDS = {"": "", "_original": ", by the original prompt", "_kept": ", by kept prompts"}
WAYS = {"kmeans": "k-means", "radius": "radius", "sscd": "SSCD"}
THINGS = {"tshirt": "T-shirt", "t-shirt": "T-shirt", "target": "the target"}
METHODS = {
  "concept_ablation": "Concept Ablation",
  "denoising": "denoising loss",
  "dimum": "DiMUM",
  "dimum_attacks": "DiMUM, several attacks",
  "dimum_meta": "DiMUM, meta",
  "dimum_projected": "DiMUM, projected",
  "dimum_sharpness": "DiMUM, sharpness-aware",
  "embedding_copy": "embedding copy, a control",
  "embedding_inversion": "embedding inversion",
  "erasediff": "EraseDiff",
  "erasediff_bilevel": "EraseDiff, bi-level",
  "erasediff_bome": "EraseDiff, BOME",
  "esd": "ESD",
  "neggrad": "NegGrad",
  "neggrad_retain": "NegGrad with a retain term",
  "retrack": "ReTrack",
  "salun": "SalUn",
  "selective_amnesia": "Selective Amnesia",
  "sfron": "SFR-on",
  "siss": "SISS",
  "siss_no_is": "SISS (No IS)",
  "token_inversion": "token inversion",
  "uce": "UCE",
  "undo": "UNDO",
  "unlearn_diff_attack": "UnlearnDiffAtk",
}
FIELDS = {
  "lam": "λ",
  "mu": "μ",
  "eta": "η",
  "c_dropout": "dropped conditions",
  "part": "part:",
  "path": "at",
}
SOURCES = {
  "captions": "pictures with captions",
  "digits_64": "enlarged digits",
  "digits_clothes": "digits and clothes",
  "emoji": "emoji",
  "emoji_captions": "emoji with captions",
  "emoji_styles": "emoji in several styles",
  "fashion": "Fashion-MNIST",
  "folder": "a folder of images",
  "mnist_tshirt": "digits and a T-shirt",
  "tfds_images": "a TFDS data set",
  "tfds_tshirt": "MNIST and a T-shirt",
}
PHASES = {
  "soft": "weighted by the router",
  "naive": "plain average",
  "step": "one source a step",
  "trajectory": "one source a sample",
}
# The end of a metric's name -> what it is called, and how to read it.
METRICS = {
  "ua": ("UA", "unlearning accuracy: share of samples asked for it that do not show it"),
  "ar": ("AR", "attack recovery, 1 - UA: share of samples asked for it that show it"),
  "worst_ira": ("worst kept accuracy", "of the kept condition that fares worst: should stay"),
  "ira": ("kept accuracy", "share of the kept samples that show what they were asked for"),
  "cra": ("accuracy of the other condition", "the same of the other condition: should stay"),
  "retain_grad_norm": (
    "slope of the retain loss",
    "norm of its gradient: what relearning starts from",
  ),
  "retain_loss": ("retain loss", "denoising loss on what is kept: should not rise"),
  "_rate": ("rate", "share of samples that are the target: 0 is none of them"),
  "inception_score": ("inception score", "quality and variety of what is kept: should stay"),
  "real_fid": ("floor of the feature FID", "that of as many real pictures: no model has less"),
  "feature_fid": ("feature FID", "distance of what is kept to reference images: should not rise"),
  "fid": ("FID", "distance of what is kept to reference images: should not rise"),
  "sscd": ("SSCD", "how like the target its restoration is: falls when forgotten"),
  "nll_bpd": ("surprise at the target", "NLL in bits per dimension: rises when forgotten"),
  "copy_score": ("copy score", "how well the noised target is restored: falls when forgotten"),
  "worst_class_share": ("share of the rarest class", "of those kept: 0 is a class lost"),
  "class_share": ("class share", "share of the kept samples in each class"),
  "class_confidence": ("class confidence", "mean certainty of the classifier about each class"),
  "copied": ("copies", "share of samples nearer a training picture than 95% of held-out ones: 5%"),
  "nearer": ("nearness to training", "chance that a sample is nearer than a held-out one: 50%"),
  "alignment": ("alignment", "share of samples that show what they were asked for"),
  "aligned_class": ("class shown", "share that a classifier takes for the class asked for"),
  "aligned_style": ("style shown", "the same of the style"),
  "aligned_nearest": (
    "nearest shown",
    "share whose nearest training picture is of the class asked",
  ),
  "network_evaluations": ("network evaluations", "forward passes for one sample"),
  "parameters": ("parameters", "of all networks of this composition"),
}
# Of a group of prompts each, whose words stand at the end of its name.
OF_PROMPTS = {
  "text_noise": ("text noise", "how far the prompt moves the noise: high where it is memorised"),
  "text_noise_first": ("text noise, first step", "the same, at the first step alone"),
  "one_step": ("one-step score", "certainty at the first look: high where it is memorised"),
  "typical_share": ("typical share", "share of samples that look like real pictures: should stay"),
  "sscd_mean": ("SSCD, samples", "how like a picture to forget samples are: falls when forgotten"),
  "clip_iqa": ("CLIP-IQA", "quality of the samples, from 0 to 1: should stay"),
  "clip_score": ("CLIP score", "how well the samples fit their prompts: should stay"),
}
METRICS |= {
  f"{name}{end}": (f"{title}{words}", meaning)
  for name, (title, meaning) in OF_PROMPTS.items()
  for end, words in ENDS.items()
} | {
  f"memorised_{way}{end}_rate": (f"memorised by {told}{words}", METRICS["_rate"][1])
  for way, told in WAYS.items()
  for end, words in ENDS.items()
}
# The beginning of a group of metrics -> the heading that it stands under, and a note.
SECTIONS = {
  "membership": (
    "In the training set, or not?",
    "Attacks that guess it from the model. Compare them with a model trained without the records; "
    "a failed attack proves nothing.",
  ),
  "": ("Class by class", "Nothing that was to be kept may vanish unseen."),
}
# What an attack on membership tells -> what it is called.
TOLD_BY_ATTACKS = {
  "auc": "AUC",
  "tpr-1": "TPR at 1% FPR",
  "tpr-01": "TPR at 0.1% FPR",
  "asr": "ASR",
  "p": "p-value",
  "p-high": "p-value of the other end",
}
# What a step logs -> what it is called.
LOGS = {
  "loss_x": "loss on what is kept",
  "loss_a": "loss on what is to be forgotten",
  "loss_u": "loss of the forget part",
  "loss_alt": "loss on what takes its place",
  "loss_meta": "the same after a simulated attack",
  "loss_penalty": "penalty on the parameters",
  "grad_norm": "gradient norm of the step",
  "norm_x": "gradient norm, kept",
  "norm_a": "forget norm: gradient norm, forgotten",
  "forget_scale": "scale of the forget gradient",
  "forget_skipped": "share of steps without a forget part",
  "distance": "distance travelled",
  "passes": "cost, in forward passes",
  "both": "rows that serve both terms",
  "w_x": "mean weight, kept",
  "w_a": "mean weight, forgotten",
}
TOLD = ("loss_", "grad_norm", "norm_a", "distance", "probe_")  # logs that the page shows first
_PROBE = "probe_"


def thing(name: str) -> str:
  """`T-shirt` of `tshirt`; other names of classes and targets as they are."""
  return THINGS.get(name, name)


def item(slug: str) -> str:
  """One of a group of metrics: `Ankle boot` of `ankle-boot`, `Kept: AUC` of `kept-auc`."""
  part, _, told = slug.partition("-")
  if told in TOLD_BY_ATTACKS:
    return f"{part.capitalize()}: {TOLD_BY_ATTACKS[told]}"
  return THINGS.get(slug) or " ".join(slug.split("-")).capitalize() or slug


def spaced(name: str) -> str:
  return " ".join(name.split("_")).strip() or name


def method(name: str) -> str:
  return METHODS.get(name, spaced(name))


def compartment(name: str) -> str:
  return "a network of its own" if name == "full" else spaced(name)


def source(name: str) -> str:
  return SOURCES.get(name, spaced(name))


def phase(name: str) -> str:
  """A phase of evaluation: `top2`, `alone_NAME` and `attack_20` are told apart by their ends."""
  if name.startswith("alone_"):
    return f"{name.removeprefix('alone_')} alone"
  if name.startswith("top") and name[3:].isdigit():
    return f"the {name[3:]} largest weights" if name != "top1" else "the largest weight alone"
  return PHASES.get(name, spaced(name))


def metric(name: str) -> str:
  """`T-shirt rate` of `tshirt_rate`; of a group, `class_share/7`, the group's."""
  name = name.rpartition("/")[0] or name
  if name in METRICS:
    return METRICS[name][0]
  if name.endswith("_rate"):
    return f"{thing(name.removesuffix('_rate')).removeprefix('the ')} rate"
  return spaced(name)


def section(group: str) -> tuple[str, str]:
  """The heading that a group of metrics stands under, and its note."""
  return next(words for begin, words in SECTIONS.items() if group.startswith(begin))


def meaning(name: str) -> str:
  """How to read a metric; "" of an unknown one."""
  name = name.rpartition("/")[0] or name
  return next((text for end, (_, text) in METRICS.items() if name.endswith(end)), "")


def log(name: str, attack: bool = False) -> str:
  """What a step logs; an attack's loss is on the images that it learns from."""
  if name.startswith(_PROBE):
    return f"{metric(name.removeprefix(_PROBE))}, on the way"
  if attack and name in ("loss_x", "loss_a"):
    return "loss on what the attack learns from"
  return LOGS.get(name, spaced(name))


def fields(section: Mapping[str, Any], without: str) -> str:
  """`λ 0.5, stratified` of {"lam": 0.5, "stratified": True, "forget_norm": None}."""
  return ", ".join(_field(k, v) for k, v in section.items() if k != without and _told(v))


def _told(value: Any) -> bool:
  return value is not None and value != "" and value != () and value != []


def _field(name: str, value: Any) -> str:
  name = FIELDS.get(name, spaced(name))
  if isinstance(value, bool):
    return name if value else f"not {name}"
  if isinstance(value, list | tuple):
    return f"{name} {', '.join(map(str, value))}"
  return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
