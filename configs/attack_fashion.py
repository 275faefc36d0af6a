"""Attack an unlearned model: does the class come back?

    python -m jaxunlearn.main --config=configs/attack_fashion.py --workdir=runs/attack \\
        --config.init_from=runs/dimum

`:NAME` takes another of ATTACKS: relearning on what is kept (DiMRA), on generated samples, on other
data, from 1, 10 or 100 images of the class, or by its embedding alone. The run is evaluated before
and after, and probed every 5 steps: its page tells UA x -> y and the step of first recovery.
"""

from ml_collections import ConfigDict

from configs import common, unlearn_fashion
from jaxunlearn import errors

FEW = lambda n: {"take": "forget", "first": n}
# name -> kind, method, what its stream takes
ATTACKS = {
  "dimra_retain": ("dimra", "denoising", {"x": "retain"}),
  "dimra_samples": ("dimra", "denoising", {"x": "samples:runs/pretrained"}),
  "dimra_public": ("dimra", "denoising", {"x": {"take": "data:mnist_tshirt", "c": "kept"}}),
  "few_1": ("few_shot", "denoising", {"x": FEW(1)}),
  "few_10": ("few_shot", "denoising", {"x": FEW(10)}),
  "few_100": ("few_shot", "denoising", {"x": FEW(100)}),
  "inversion": ("inversion", "embedding_inversion", {"a": {**FEW(100), "to": "next"}}),
}


def get_config(variant: str = "dimra_retain"):
  config = attack(unlearn_fashion.get_config(), variant, 1e-3)
  config.init_from = "runs/dimum"
  config.eval.update(before=True, after=True, every=5)
  return config


def attack(config: ConfigDict, variant: str, rate: float) -> ConfigDict:
  """The config of a trained or unlearned model, made an attack on it: Adam at a constant rate."""
  errors.check_choice("variant", variant, ATTACKS)
  config.attack, method, streams = ATTACKS[variant]
  config.method = common.method(method)
  config.streams = streams
  config.optimizer.update(learning_rate=rate, warmup=0, schedule="constant", weight_decay=0.0)
  config.train.update(steps=30, batch=32, log_every=10, checkpoint_every=1000)
  config.eval.update(after=False, every=15, probe_samples=32)
  return config
