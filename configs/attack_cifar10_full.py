"""Attack a model that has unlearned a CIFAR-10 class: does the class come back?

    python -m jaxunlearn.main --config=configs/attack_cifar10_full.py \\
        --workdir=runs/attack_cifar10 --config.init_from=runs/dimum_cifar10

`:NAME` takes another of ATTACKS: relearning on what is kept (DiMRA) or on the pretrained model's
samples, from 1, 10 or 100 images of the class, or by its embedding alone. The grid of the papers:
`--config.optimizer.learning_rate` in 1e-5, 1e-4, 2e-4. One GPU; not run here. The samples are kept
for an outside classifier; for AR over the steps set config.eval.every, and `unlearning_accuracy` in
config.eval.probe_metrics with a config.eval.classifier.

Deviations: the papers' AR is by a ResNet-34, and their steps and batches are not known in full.
"""

from ml_collections import ConfigDict

from configs import attack_fashion, unlearn_cifar10_full

ATTACKS = tuple(name for name in attack_fashion.ATTACKS if name != "dimra_public")


def get_config(variant: str = "dimra_retain"):
  config = attack(unlearn_cifar10_full.get_config(), variant)
  config.init_from = "runs/dimum_cifar10"
  config.eval.samples = 450
  return config


def attack(config: ConfigDict, variant: str) -> ConfigDict:
  """The config of a full-size unlearning run, made one that attacks it."""
  origin = config.init_from
  config = attack_fashion.attack(config, variant, 1e-2 if variant == "inversion" else 1e-4)
  if variant == "dimra_samples":
    config.streams.x = f"samples:{origin}"
  config.train.update(steps=1000, batch=128, log_every=100, checkpoint_every=100)
  config.eval.update(after=True, every=0, metrics=())
  return config
