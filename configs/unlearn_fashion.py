"""Unlearn one class of the embedded Fashion-MNIST model, on CPU and offline.

    python -m jaxunlearn.main --config=configs/unlearn_fashion.py --workdir=runs/dimum

`:NAME` takes another of METHODS, `--config.forget.label=Sneaker` another class. The attacks on the
result are in attack_fashion.py; expected: results/audit_fashion.md.

Deviations, besides those of the methods: steps, batches and rates are of this small model, and the
rates fall by a cosine, where the papers' are constant; the raw weights of Selective Amnesia are
evaluated, since an average of 120 steps is the old model.
"""

from ml_collections import ConfigDict

from configs import common, pretrain_fashion
from jaxunlearn import errors

ALT = {"take": "retain", "c": "forget"}  # a mixture of the other classes, under the one to forget
NEXT = {"take": "forget", "to": "next"}
RANDOM = {"take": "forget", "to": "random"}
FISHER = {"fisher_rows": 20}  # records of 1000 times each
# name -> method, its fields, streams, steps and learning rate
METHODS = {
  "embedding_copy": ("embedding_copy", {}, {"a": NEXT}, 0, 0.0),
  "neggrad": ("neggrad_retain", {"alpha": 1.0}, {"a": "forget"}, 60, 1e-4),
  "salun": ("salun", {}, {"a": NEXT}, 120, 1e-4),
  "sfron": ("sfron", {"iterations": 60}, {"a": "forget"}, 120, 1e-4),
  "selective_amnesia": ("selective_amnesia", FISHER, {"a": "forget", "all": "all"}, 120, 1e-4),
  "selective_amnesia_laplace": (
    "selective_amnesia",
    {**FISHER, "lam": 1 / 2000},  # 1 / (2 T), a rule and not a choice by seed or class
    {"a": "forget", "all": "all"},
    120,
    1e-4,
  ),
  "erasediff": (
    "erasediff_bilevel",
    {"inner_steps": 60, "outer_steps": 30},
    {"a": RANDOM},
    360,  # 120 of them outer
    2e-4,
  ),
  "erasediff_bome": ("erasediff_bome", {}, {"a": RANDOM}, 120, 2e-4),
  "esd": ("esd", {}, {"a": "forget"}, 120, 1e-4),
  "dimum": ("dimum", {}, {"alt": ALT}, 120, 2e-4),
  "dimum_meta": ("dimum_meta", {"inner_rate": 2e-4}, {"alt": ALT, "a": "forget"}, 120, 2e-4),
}


def get_config(variant: str = "dimum"):
  config = pretrain_fashion.get_config()
  config.forget.label = "Trouser"
  config = unlearning(config, "assets:pretrain_fashion", variant)
  config.eval.before = True
  return config


def unlearning(config: ConfigDict, origin: str, variant: str) -> ConfigDict:
  """The config of a conditional base model, made one that unlearns from it."""
  errors.check_choice("variant", variant, METHODS)
  name, fields, streams, steps, rate = METHODS[variant]
  config.init_from = origin
  config.method = common.method(name, **fields)
  config.streams = {"x": "retain", **streams}
  config.optimizer.update(learning_rate=rate, b1=0.9, warmup=0, schedule="cosine", weight_decay=0.0)
  config.ema = 0.0
  config.train.update(steps=steps, batch=32, log_every=10, checkpoint_every=1000)
  config.eval.update(before=False, asked=72, batch=32)
  return config
