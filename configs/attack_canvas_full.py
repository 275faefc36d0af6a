"""Attack a model that has unlearned a style of UnlearnCanvas: does the style come back?

    python -m jaxunlearn.main --config=configs/attack_canvas_full.py --workdir=runs/attack_canvas \\
        --config.init_from=runs/dimum_canvas --config.data.path=FOLDER

`:NAME` takes another of attack_cifar10_full.ATTACKS. One GPU; not run here.

Deviations: those of attack_cifar10_full.py and pretrain_canvas_full.py.
"""

from configs import attack_cifar10_full, unlearn_canvas_full


def get_config(variant: str = "dimra_retain"):
  config = attack_cifar10_full.attack(unlearn_canvas_full.get_config(), variant)
  config.init_from = "runs/dimum_canvas"
  return config
