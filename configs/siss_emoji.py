"""Delete one emoji, a clown, from the embedded colour model: two CPU cores, offline.

    python -m jaxunlearn.main --config=configs/siss_emoji.py --workdir=runs/siss_emoji

The same method, metrics and report as `siss_mnist.py`, on real pictures in colour; the deletion
request names the file's SHA-256, so that every copy goes. Expected: results/siss_emoji.md.
"""

from configs import common, pretrain_emoji, siss_mnist


def get_config(variant: str = "siss"):
  config = pretrain_emoji.get_config()
  name, fields = siss_mnist.METHODS.get(variant, (variant, {}))
  config.init_from = "assets:pretrain_emoji"
  config.method = common.method(name, **fields)
  config.streams = {"x": "retain", "a": "forget"}
  config.optimizer.update(
    learning_rate=2e-4, b1=0.95, warmup=0, schedule="constant", weight_decay=1e-6
  )
  config.ema = 0.0
  config.train.update(steps=60, batch=64, log_every=1, checkpoint_every=20)
  config.eval.update(before=True, every=20, probe_samples=32)
  return config
