"""The public backbone of the compartments: a UNet on a fifth of the digits and clothes.

    python -m jaxunlearn.main --config=configs/pretrain_digits_clothes.py --workdir=runs/backbone
    python -m jaxunlearn.export --run=runs/backbone \\
        --out=jaxunlearn/assets/pretrain_digits_clothes --license=cc-by-sa-3.0

4,000 steps of 64: 13 minutes on one core.
"""

from configs import common, pretrain_mnist


def get_config():
  config = pretrain_mnist.get_config()
  config.model.update(block_out_channels=(16, 32), attention_head_dim=8)
  config.data = common.source("digits_clothes", part="public")
  config.forget.label = ""
  config.train.steps = 4000
  config.eval.update(metrics=("inception_score", "feature_fid"), probe_metrics=())
  config.eval.classifier = "digits_clothes"
  return config
