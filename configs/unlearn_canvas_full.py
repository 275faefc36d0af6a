"""Unlearn a style, or an object, from the model of `pretrain_canvas_full.py`.

    python -m jaxunlearn.main --config=configs/unlearn_canvas_full.py --workdir=runs/dimum_canvas \\
        --config.data.path=FOLDER

`:NAME` runs another method of unlearn_cifar10_full.py, at its steps and learning rate, and
`--config.forget.style=Rust` unlearns another style; an object is `--config.forget.style=''
--config.forget.label=Dogs`, of which 51 x 5 samples are asked and 19 x 51 x 5 kept. DiMUM shows the
same objects in the other styles; `--config.streams.alt.take=style:Seed_Images` as photographs. One
GPU; not run here. The attacks are those of attack_cifar10_full.py, in attack_canvas_full.py.

UA, IRA and CRA of the benchmark are by classifiers that are not here: the samples lie in
samples.npz with their conditions, or set config.eval.classifier and style_classifier and add
`unlearning_accuracy` and `kept_accuracy` to config.eval.metrics.

Deviations: those of pretrain_canvas_full.py and unlearn_cifar10_full.py.
"""

from configs import pretrain_canvas_full, unlearn_cifar10_full

BASE = "runs/pretrain_canvas"


def get_config(variant: str = "dimum"):
  config = pretrain_canvas_full.get_config()
  config.forget.style = "Van_Gogh"
  return unlearn_cifar10_full.unlearning(config, BASE, variant)
