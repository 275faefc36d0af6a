"""A colour base model: emoji of 32 px in two styles, one of them 3% of the set, on two CPU cores.

    python -m jaxunlearn.main --config=configs/pretrain_emoji.py --workdir=runs/pretrain_emoji
    python -m jaxunlearn.export --run=runs/pretrain_emoji --out=jaxunlearn/assets/pretrain_emoji

`assets/pretrain_emoji/training.json` has the loss curve; expected: results/siss_emoji.md.
"""

from configs import common, pretrain_mnist

ROCKET = "noto/rocket"
ROCKET_SHA256 = "sha256:60a974b6b7f98fd70c3d2725fc7ca025721e5ddf43222eea65d05c723941839e"


def get_config():
  config = common.get_config()
  config.model.update(pretrain_mnist.model() | model())
  config.data = {"source": "emoji", "repeat": ROCKET, "share": 0.03, "heldout": 10}
  config.forget.ids = (ROCKET_SHA256,)  # all copies: what the evaluation looks for
  config.streams.x = "all"
  config.optimizer.update(learning_rate=1e-3, warmup=200, schedule="cosine", weight_decay=1e-4)
  config.ema = 0.999
  config.train.update(steps=4000, batch=64, log_every=50, checkpoint_every=250)
  config.eval.before = False
  return config


def model() -> dict:
  """2x2 pixels folded into channels: 16 and 8 pixels wide inside."""
  return {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (48, 96),
  }
