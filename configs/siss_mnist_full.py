"""The paper's MNIST T-shirt deletion, in its own settings (Alberti et al., 2025, Table 2).

    python -m jaxunlearn.main --config=configs/siss_mnist_full.py --workdir=runs/siss_full \\
        --config.init_from=runs/pretrain_full

Needs the run of `pretrain_mnist_full.py` and its data. The diverging methods take 100 steps:
`--config=configs/siss_mnist_full.py:neggrad --config.train.steps=100`.
Expected for siss (5 seeds): IS 9.2, NLL 8.09 bits/dim, T-shirt rate 0.
"""

from configs import pretrain_mnist_full, siss_mnist


def get_config(variant: str = "siss"):
  config = siss_mnist.get_config(variant)
  base = pretrain_mnist_full.get_config()
  config.init_from = "runs/pretrain_full"
  config.model, config.data = base.model, base.data
  if "forget_norm" in config.method:
    config.method.forget_norm = 5.0
  config.optimizer.learning_rate = 5e-5
  config.train.update(steps=300, batch=128, micro_batches=1, checkpoint_every=100)
  config.eval.update(every=50, samples=10000, steps=50, batch=500)
  return config
