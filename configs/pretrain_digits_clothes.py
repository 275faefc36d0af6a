"""The public backbone of the compartments: a U-ViT on a fifth of the digits and clothes.

    python -m jaxunlearn.main --config=configs/pretrain_digits_clothes.py --workdir=runs/backbone
    python -m jaxunlearn.export --run=runs/backbone \\
        --out=jaxunlearn/assets/pretrain_digits_clothes --license=cc-by-sa-3.0

0.27M parameters, 4,000 steps of 64: 17 minutes on one core.
"""

from configs import common


def get_config():
  config = common.get_config()
  config.model = {
    "name": "uvit",
    "sample_size": 28,
    "in_channels": 1,
    "patch_size": 4,
    "width": 64,
    "depth": 4,
    "heads": 4,
  }
  config.data = common.source("digits_clothes", part="public")
  config.optimizer.update(
    learning_rate=1e-3, b2=0.99, weight_decay=0.03, warmup=200, schedule="cosine"
  )
  config.ema = 0.999
  config.train.update(steps=4000, batch=64, log_every=20, checkpoint_every=1000)
  config.eval.update(
    before=False, metrics=("inception_score", "feature_fid"), classifier="digits_clothes"
  )
  return config
