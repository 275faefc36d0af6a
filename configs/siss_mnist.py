"""Delete the T-shirt from the embedded base model, on two CPU cores and offline.

    python -m jaxunlearn.main --config=configs/siss_mnist.py --workdir=runs/siss_mnist

`--config=configs/siss_mnist.py:NAME` runs another method under the same settings. Expected:
results/siss_mnist.md. The paper's own settings are in `siss_mnist_full.py`.
"""

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
  config = pretrain_mnist.get_config()
  name, fields = METHODS.get(variant, (variant, {}))
  config.init_from = "assets:pretrain_mnist"
  config.method = common.method(name, **fields)
  config.streams = {"x": "retain", "a": "forget"}
  config.optimizer.update(
    learning_rate=3e-4, b1=0.95, warmup=0, schedule="constant", weight_decay=1e-6
  )
  config.ema = 0.0
  config.train.update(steps=100, batch=64, log_every=1, checkpoint_every=20)
  config.eval.update(before=True, every=20)
  return config
