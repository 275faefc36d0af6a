"""The gold standard: `pretrain_fashion` without one class, from scratch.

    python -m jaxunlearn.main --config=configs/retrain_fashion.py:Trouser --workdir=runs/trouser
    python -m jaxunlearn.export --run=runs/trouser --out=jaxunlearn/assets/retrain_fashion_trouser

and the same with Sneaker. 13 minutes on one core.
"""

from configs import pretrain_fashion


def get_config(label: str = "Trouser"):
  config = pretrain_fashion.get_config()
  config.forget.label = label
  config.streams.x = "retain"
  return config
