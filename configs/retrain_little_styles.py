"""The yardstick of audit_little_sd.py: the base model's training without one kind or one style.

    python -m jaxunlearn.main --config=configs/retrain_little_styles.py:mosaic \\
        --workdir=runs/retrain_mosaic

A style that is drawn by rule was never seen by the little Stable Diffusion: it is trained further
without it, as the base was with it. Kinds and the styles noto and twemoji it has seen, so that
those are trained from scratch (`pretrain_little_styles.py:scratch`).
"""

from configs import pretrain_little_styles
from jaxunlearn.data import emoji_styles


def get_config(name: str = "mosaic"):
  further = name in emoji_styles.RULES
  config = pretrain_little_styles.get_config("further" if further else "scratch")
  config.forget["label" if name in emoji_styles.KINDS else "style"] = name
  config.streams.x = "retain"
  config.eval.asked = 72
  config.eval.metrics = ("unlearning_accuracy", *config.eval.metrics)
  return config
