"""The base model of audit_little_sd.py: eight kinds of emoji in six styles, by prompt.

    python -m jaxunlearn.main --config=configs/pretrain_little_styles.py \\
        --workdir=runs/little_styles
    python -m jaxunlearn.export --run=runs/little_styles --out=jaxunlearn/assets/little_styles \\
        --half --license=apache-2.0

The little Stable Diffusion knows two of the styles (and `heart emoji in noto style` by that very
caption); this trains it further, UNet and text encoder, until it knows all six: an hour on a core.
The autoencoder stays. How good it is: `assets/little_styles/README.md`.
"""

import dataclasses

from configs import common, pretrain_little_sd
from jaxunlearn import prompts

ORIGIN = "assets:little_sd"
TEMPLATE = "{class} emoji in {style} style"


def get_config():
  config = pretrain_little_sd.get_config()
  config.data = common.source("emoji_styles")
  options = prompts.Options(template=TEMPLATE, tokenizer=ORIGIN)
  config.prompts.update(dataclasses.asdict(options))
  config.codec.path = ORIGIN
  config.init_from = ORIGIN
  config.optimizer.update(learning_rate=3e-4, warmup=100)
  config.train.steps = 1500
  config.eval.update(evaluation())
  return config


def evaluation() -> dict:
  """Four samples of every kind and style, by the classifiers that were trained on the same set."""
  return {
    "metrics": ("kept_accuracy", "feature_fid"),
    "classifier": "decoded_objects",
    "style_classifier": "decoded_styles",
    "samples": 192,
    "sampler": "dpm",
    "steps": 10,
    "guidance": 3.0,
  }
