"""Delete the T-shirt from the embedded base model, on two CPU cores and offline.

    python -m jaxunlearn.main --config=configs/siss_mnist.py --workdir=runs/siss_mnist

`--config=configs/siss_mnist.py:NAME` runs another method under the same settings. Expected:
results/siss_mnist.md. The paper's own settings are in `siss_mnist_full.py`.
"""

from ml_collections import ConfigDict

from configs import common, pretrain_mnist

METHODS = {
  "naive": ("denoising", {}),
  "siss_lam0": ("siss", {"lam": 0.0}),
  "siss": ("siss", {"lam": 0.5}),
  "siss_lam1": ("siss", {"lam": 1.0}),
  "siss_no_is": ("siss_no_is", {}),
  "erasediff": ("erasediff", {}),
  "neggrad": ("neggrad", {}),
  "retrack": ("retrack", {}),
}


def get_config(variant: str = "siss"):
  """`variant` is a key of METHODS, or any method by its module name, with its defaults."""
  return deletion(pretrain_mnist.get_config(), "assets:pretrain_mnist", variant)


def method(variant: str) -> ConfigDict:
  name, fields = METHODS.get(variant, (variant, {}))
  return common.method(name, **fields)


def deletion(config: ConfigDict, origin: str, variant: str) -> ConfigDict:
  """The config of a base model, made one that deletes from it."""
  config.init_from = origin
  config.method = method(variant)
  config.streams = {"x": "retain", "a": "forget"}
  config.optimizer.update(
    learning_rate=3e-4, b1=0.95, warmup=0, schedule="constant", weight_decay=1e-6
  )
  config.ema = 0.0
  config.train.update(steps=100, batch=64, log_every=1, checkpoint_every=20)
  config.eval.update(before=True, every=20)
  return config
