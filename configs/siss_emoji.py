"""Delete one emoji, a clown, from the embedded colour model: two CPU cores, offline.

    python -m jaxunlearn.main --config=configs/siss_emoji.py --workdir=runs/siss_emoji

The same method, metrics and report as `siss_mnist.py`, on real pictures in colour; the deletion
request names the file's SHA-256, so that every copy goes. Expected: results/siss_emoji.md.
"""

from configs import pretrain_emoji, siss_mnist


def get_config(variant: str = "siss"):
  config = siss_mnist.deletion(pretrain_emoji.get_config(), "assets:pretrain_emoji", variant)
  config.optimizer.learning_rate = 2e-4
  config.train.steps = 60
  config.eval.probe_samples = 32
  return config
