"""The two-condition base model: emoji of five groups in two styles, from scratch on CPU.

    python -m jaxunlearn.main --config=configs/pretrain_styles.py --workdir=runs/pretrain_styles
    python -m jaxunlearn.export --run=runs/pretrain_styles \\
        --out=jaxunlearn/assets/pretrain_styles --license=apache-2.0

214,691 parameters, 6,000 steps: some 20 minutes on one core. Expected: results/audit_emoji.md.
"""

from configs import common, pretrain_fashion
from jaxunlearn.evals.recipes import EMOJI_GROUPS


def get_config():
  config = pretrain_fashion.get_config()
  config.model.update(
    sample_size=16, in_channels=3, out_channels=3, patch_size=1, classes=(len(EMOJI_GROUPS), 2)
  )
  config.data = common.source("emoji", groups=EMOJI_GROUPS, size=16)
  config.train.steps = 6000
  config.eval.update(
    classifier="emoji_groups", style_classifier="emoji_styles", samples=256, guidance=1.0
  )
  return config
