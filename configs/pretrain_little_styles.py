"""The base model of audit_little_sd.py: eight kinds of emoji in six styles, by prompt.

    python -m jaxunlearn.main --config=configs/pretrain_little_styles.py \\
        --workdir=runs/little_styles

The little Stable Diffusion knows two of the styles (and `heart emoji in noto style` by that very
caption); this trains it further, UNet and text encoder, until it knows all six. The autoencoder
stays. `:scratch` begins with random networks.
"""

import dataclasses

from configs import common, pretrain_little_sd
from jaxunlearn import errors, prompts

ORIGIN = "assets:little_sd"
TEMPLATE = "{class} emoji in {style} style"
STEPS = {"further": 3000, "scratch": 8000}


def get_config(variant: str = "further"):
  errors.check_choice("variant", variant, STEPS)
  config = pretrain_little_sd.get_config()
  config.data = common.source("emoji_styles")
  options = prompts.Options(template=TEMPLATE, tokenizer=ORIGIN)
  config.prompts.update(dataclasses.asdict(options))
  config.codec.path = ORIGIN
  config.init_from = ORIGIN if variant == "further" else ""
  rate = 3e-4 if variant == "further" else 1e-3
  config.optimizer.update(learning_rate=rate, warmup=100)
  config.train.steps = STEPS[variant]
  config.eval.update(evaluation())
  return config


def evaluation() -> dict:
  """Four samples of every kind and style, by the classifiers that were trained on the same set."""
  return {
    "metrics": ("kept_accuracy", "feature_fid"),
    "classifier": "little_objects",
    "style_classifier": "little_styles",
    "samples": 192,
    "sampler": "ddim",
    "steps": 20,
    "guidance": 3.0,
  }
