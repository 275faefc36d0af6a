"""The class-conditional base model: Fashion-MNIST, ten classes, from scratch on CPU.

    python -m jaxunlearn.main --config=configs/pretrain_fashion.py --workdir=runs/pretrain_fashion
    python -m jaxunlearn.export --run=runs/pretrain_fashion --out=jaxunlearn/assets/pretrain_fashion

0.20M parameters, 4,000 steps of 64: 13 minutes on one core. `assets/pretrain_fashion/training.json`
has the loss curve; expected: results/audit_fashion.md.
"""

from configs import common, pretrain_mnist


def get_config():
  config = pretrain_mnist.get_config()
  config.model.update(model())
  config.data = common.source("fashion")
  config.forget.label = ""
  config.train.steps = 4000
  config.eval.update(evaluation())
  return config


def model() -> dict:
  """2x2 pixels folded into channels: 14 and 7 pixels wide inside."""
  return {"block_out_channels": (16, 32), "attention_head_dim": 8, "classes": (10,)}


def evaluation() -> dict:
  """Samples of every class in turn, guided."""
  return {
    "metrics": ("unlearning_accuracy", "kept_accuracy", "feature_fid", "stationarity"),
    "probe_metrics": ("unlearning_accuracy",),
    "samples": 216,
    "guidance": 1.0,
    "classifier": "fashion",
  }
