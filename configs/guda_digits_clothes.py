"""GUDA's two kinds of model for `jaxunlearn cdm compare`: one on everything, one that unlearned.

    python -m jaxunlearn.main --config=configs/cdm_digits_clothes.py:class4 --workdir=runs/cdm
    python -m jaxunlearn.main --config=configs/guda_digits_clothes.py --workdir=runs/guda/whole
    for i in 0 1 2 3; do
      jaxunlearn cdm ids --run=runs/cdm --source=class-$i > runs/guda/class-$i.txt
      python -m jaxunlearn.main --config=configs/guda_digits_clothes.py:class-$i \\
          --workdir=runs/guda/class-$i
    done
    jaxunlearn cdm compare --run=runs/cdm --out=results/cdm_attribution --probes=4 \\
        --model=runs/guda/whole \\
        $(for i in 0 1 2 3; do echo --unlearned=class-$i=runs/guda/class-$i; done)

The whole model trains as long as all compartments together, from the same backbone, and a group is
unlearned by SISS without importance sampling, one of GUDA's unlearners. Expected:
results/cdm_attribution.md.
"""

from configs import cdm_digits_clothes, common, pretrain_digits_clothes

WHOLE = "runs/guda/whole"


def get_config(source: str = ""):
  config = pretrain_digits_clothes.get_config()
  config.data = common.source("digits_clothes", part="private")
  config.ema = 0.99
  config.eval.update(metrics=("feature_fid",), samples=512)
  config.init_from = "assets:pretrain_digits_clothes"
  config.optimizer.update(learning_rate=3e-4, warmup=20)
  config.train.update(steps=cdm_digits_clothes.STEPS, batch=cdm_digits_clothes.BATCH)
  if source:
    unlearning(config, source)
  return config


def unlearning(config, source: str) -> None:
  config.init_from = WHOLE
  config.method = common.method("siss_no_is")
  config.streams.update(x="retain", a="forget")
  config.forget.file = f"runs/guda/{source}.txt"
  config.train.steps = 200
