"""The gold standard: `pretrain_styles` without one style or one group, from scratch.

    python -m jaxunlearn.main --config=configs/retrain_styles.py:twemoji --workdir=runs/twemoji

and the same with Flags. As long as `pretrain_styles`.
"""

from configs import pretrain_styles
from jaxunlearn.evals.recipes import EMOJI_GROUPS


def get_config(name: str = "twemoji"):
  config = pretrain_styles.get_config()
  config.forget["label" if name in EMOJI_GROUPS else "style"] = name
  config.streams.x = "retain"
  return config
