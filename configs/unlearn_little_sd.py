"""Unlearn a style, or a kind of emoji, from the text-to-image model of pretrain_little_styles.py.

    python -m jaxunlearn.main --config=configs/unlearn_little_sd.py --workdir=runs/dimum_mosaic

`:NAME` takes another of METHODS; `--config.forget.style='' --config.forget.label=time` a kind. The
attacks on the result are in attack_little_sd.py, all of it in audit_little_sd.py.

What a method trains is that of its paper on Stable Diffusion: ESD-x the attention to text, ESD-u
all but it, ESD-x-strict, Concept Ablation and UCE its keys and values; the others the UNet. UNDO
begins with a model that another method has unlearned: --config.init_from=runs/dimum_mosaic. It
teaches a damaged copy of it; `undo_onto` teaches the model that the base was trained further from,
which has seen no mosaic (of another concept: --config.method.onto, of retrain_little_styles.py).
`undo_onto_null` is the same, but where the prompt is dropped the model learns the noise, not what
the teacher says.

Deviations, besides those of the methods: steps, batches and rates are of this small model.
"""

from ml_collections import ConfigDict

from configs import common, pretrain_little_styles
from jaxunlearn import errors

BASE = "assets:little_styles"
ALT = {"take": "retain", "c": "forget"}  # what is kept, under the prompts to forget
OWN = {**ALT, "to": "own"}
NEXT = {"take": "forget", "to": "next"}
RANDOM = {"take": "forget", "to": "random"}
UNET, NOT_ATTN2 = "^unet/", "^unet/(?!.*(/attn2/|norm))"
STEPS, BATCH = 60, 16
ESD = {"partial": 128, "partial_batch": 32, "partial_steps": 20}
MASK = {"mask_rows": 256, "mask_batch": 32}
AMNESIA = {"fisher_rows": 2, "lam": 1 / 2000}
DEFENDED = {"alt": ALT, "a": "forget"}
ONTO = {"alpha": 1.0, "onto": pretrain_little_styles.ORIGIN}
# name -> method, its fields, streams, what is trained, steps and learning rate
METHODS = {
  "prompt_copy": ("embedding_copy", {}, {"a": NEXT}, "prompts", 0, 0.0),
  "neggrad": ("neggrad_retain", {}, {"a": "forget"}, UNET, STEPS // 2, 3e-5),
  "salun": ("salun", MASK, {"a": NEXT}, UNET, STEPS, 1e-4),
  "sfron": ("sfron", {"iterations": STEPS // 2, **MASK}, {"a": "forget"}, UNET, STEPS, 1e-4),
  "selective_amnesia": (
    "selective_amnesia",
    AMNESIA,
    {"a": "forget", "all": "all"},
    UNET,
    STEPS,
    1e-4,
  ),
  "erasediff": (
    "erasediff_bilevel",
    {"inner_steps": 20, "outer_steps": 40},
    {"a": RANDOM},
    UNET,
    3 * STEPS,
    5e-4,
  ),
  "esd_x": ("esd", ESD, {"a": "forget"}, "attn2", STEPS, 5e-4),
  "esd_u": ("esd", ESD, {"a": "forget"}, NOT_ATTN2, STEPS, 2e-4),
  "esd_strict": ("esd", ESD, {"a": "forget"}, "attn2_kv", STEPS, 2e-4),
  "esd_cheap": ("esd", {}, {"a": "forget"}, "attn2", STEPS, 2e-4),
  "ca_model": ("concept_ablation", {}, {"alt": OWN}, "attn2_kv", STEPS, 4e-4),
  "ca_noise": (
    "concept_ablation",
    {"form": "noise", "lam": 1.0},
    {"alt": OWN},
    "attn2_kv",
    STEPS,
    2e-4,
  ),
  "uce": ("uce", {}, {"a": NEXT}, "attn2_kv", 0, 0.0),
  "dimum": ("dimum", {}, {"alt": ALT}, UNET, STEPS, 2e-4),
  "dimum_meta": ("dimum_meta", {"inner_rate": 2e-4}, DEFENDED, UNET, STEPS, 2e-4),
  "dimum_attacks": ("dimum_attacks", {"inner_rate": 2e-4}, DEFENDED, UNET, STEPS, 2e-4),
  "dimum_sharpness": ("dimum_sharpness", {}, {"alt": ALT}, UNET, STEPS, 2e-4),
  "dimum_projected": ("dimum_projected", {"batch": 32}, {"alt": ALT}, UNET, STEPS, 2e-4),
  "undo": ("undo", {"alpha": 0.3}, {"alt": ALT}, UNET, 4 * STEPS, 3e-4),
  "undo_onto": ("undo", ONTO, {"alt": ALT}, UNET, 12 * STEPS, 5e-4),
  "undo_onto_null": ("undo", {**ONTO, "null": "noise"}, {"alt": ALT}, UNET, 12 * STEPS, 5e-4),
}


def get_config(variant: str = "dimum"):
  config = base(BASE)
  config.forget.style = "mosaic"
  return unlearning(config, BASE, variant)


def base(origin: str) -> ConfigDict:
  """The config of the base model with its weights, to be measured or unlearned from."""
  config = pretrain_little_styles.get_config()
  config.init_from = origin
  config.ema = 0.0
  config.streams.x = "retain"
  config.eval.update(
    metrics=("unlearning_accuracy", "kept_accuracy", "alignment"),
    probe_metrics=("unlearning_accuracy",),
    samples=80,
    asked=48,
    batch=32,
    steps=8,
  )
  return config


def unlearning(config: ConfigDict, origin: str, variant: str) -> ConfigDict:
  """The config of a text-to-image base model, made one that unlearns from it."""
  errors.check_choice("variant", variant, METHODS)
  name, fields, streams, trained, steps, rate = METHODS[variant]
  config.init_from = origin
  config.method = common.method(name, **fields)
  config.streams = {"x": "retain", **streams}
  config.trained.update(pattern=trained, rank=0)
  config.optimizer.update(learning_rate=rate, b1=0.9, warmup=0, schedule="cosine", weight_decay=0.0)
  config.train.update(steps=steps, batch=BATCH, log_every=10, checkpoint_every=1000)
  config.eval.before = False
  return config
