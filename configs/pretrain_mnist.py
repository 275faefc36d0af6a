"""The embedded base model: 8,500 digits and one T-shirt (3% of the set), from scratch on CPU.

    python -m jaxunlearn.main --config=configs/pretrain_mnist.py --workdir=runs/pretrain_mnist
    python -m jaxunlearn.export --run=runs/pretrain_mnist --out=jaxunlearn/assets/pretrain_mnist

0.70M parameters, 5,000 steps of 64 at about 3.2 steps a second on one core: 26 minutes.
`assets/pretrain_mnist/training.json` has the loss curve; expected: results/siss_mnist.md.
"""

from configs import common


def get_config():
  config = common.get_config()
  config.model.update(model())
  config.data.update(digits=8500, share=0.03)
  config.forget.label = "tshirt"  # what the evaluation looks for; the stream below keeps it
  config.streams.x = "all"
  config.optimizer.update(learning_rate=1e-3, warmup=200, schedule="cosine", weight_decay=1e-4)
  config.ema = 0.999
  config.train.update(steps=5000, batch=64, log_every=50, checkpoint_every=500)
  config.eval.before = False
  return config


def model() -> dict:
  """A UNet for two CPU cores: 2x2 pixels folded into channels, 14 and 7 pixels wide inside."""
  return {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "patch_size": 2,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 16,
    "norm_num_groups": 8,
  }
