"""The gold standard: `pretrain_emojis` without one style or one group, from scratch.

    python -m jaxunlearn.main --config=configs/retrain_emojis.py:twemoji --workdir=runs/twemoji

and the same with Flags.
"""

from configs import pretrain_emojis
from jaxunlearn.evals.classifiers import EMOJI_GROUPS


def get_config(name: str = "twemoji"):
  config = pretrain_emojis.get_config()
  config.forget["label" if name in EMOJI_GROUPS else "style"] = name
  config.streams.x = "retain"
  return config
