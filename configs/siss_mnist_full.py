"""The paper's MNIST T-shirt deletion, in its own settings (Alberti et al., 2025, Table 2).

    python -m jaxunlearn.main --config=configs/siss_mnist_full.py --workdir=runs/siss_full \\
        --config.init_from=runs/pretrain_full

Needs the run of `pretrain_mnist_full.py` and its data. `:NAME` takes another method of
siss_mnist.py; the diverging ones take 100 steps, ReTrack its own 50, the others 300. NLL is by the
protocol of the release. Expected for siss (5 seeds): IS 9.2, NLL 8.09 bits/dim, T-shirt rate 0.

Deviations: those of the method.
"""

from configs import pretrain_mnist_full, siss_mnist

STEPS = {"neggrad": 100, "erasediff": 100, "siss_lam1": 100, "retrack": 50}  # the others: 300


def get_config(variant: str = "siss"):
  config = siss_mnist.get_config(variant)
  base = pretrain_mnist_full.get_config()
  config.init_from = "runs/pretrain_full"
  config.model, config.data = base.model, base.data
  if "forget_norm" in config.method:
    config.method.forget_norm = 5.0
  config.optimizer.learning_rate = 5e-5
  steps = STEPS.get(variant, 300)
  config.train.update(steps=steps, batch=128, micro_batches=1, checkpoint_every=100)
  config.eval.update(every=50, samples=10000, steps=50, batch=500)
  config.eval.update(nll_protocol="siss", nll_tolerance=1e-5)
  return config
