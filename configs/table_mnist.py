"""The comparison table: every method on the embedded T-shirt, 3 seeds, one command, resumable.

    python -m jaxunlearn.main --config=configs/table_mnist.py --workdir=runs/table_mnist

Writes results/siss_mnist.{md,json}. Launched twice at once, on one core each (`taskset -c 0` and
`taskset -c 1`), it took 35 minutes. The published numbers are Table 2 of Alberti et al. (2025); NLL
is by the protocol of their release.
"""

from ml_collections import ConfigDict

from configs import pretrain_mnist, retrain_mnist, siss_mnist

SEEDS = (0, 1, 2)
# label -> (variant of siss_mnist, steps, the paper's IS, NLL and T-shirt rate)
METHODS = {
  "naive deletion": ("naive", 100, ("9.5", "1.19", "0.04%")),
  "SISS λ=0": ("siss_lam0", 100, ("9.4", "1.04", "0.003%")),
  "SISS λ=0.5": ("siss", 100, ("9.2", "8.09", "0%")),
  "SISS (No IS)": ("siss_no_is", 100, ("9.2", "8.68", "0%")),
  "ReTrack": ("retrack", 100, ("-", "-", "-")),
  "EraseDiff": ("erasediff", 50, ("5.1", "12.04", "-")),
  "SISS λ=1": ("siss_lam1", 50, ("1.2", "9.30", "-")),
  "NegGrad": ("neggrad", 50, ("1.3", "15.79", "-")),
}


COLUMNS = (
  ("tshirt_rate", "T-shirt rate"),
  ("inception_score", "IS"),
  ("nll_bpd", "NLL (bits/dim)"),
  ("copy_score", "copy score"),
  ("feature_fid", "feature FID"),
  ("worst_class_share", "worst class share"),
  ("membership_pia/deleted-p", "p, PIA"),
  ("membership_pia/deleted-p-high", "p of the other end, PIA"),
  ("membership_pia/kept-auc", "AUC of the kept, PIA"),
  ("verdict", "verdict"),
)


def get_config():
  config = ConfigDict({"runs": {}, "rows": (), "columns": COLUMNS, "out": "results/siss_mnist"})
  config.published = ("IS", "NLL", "T-shirt rate")
  pretrained = trained(pretrain_mnist, "pretrain_mnist")
  retrained = trained(retrain_mnist, "retrain_mnist")
  add(config, "pretrained", "pretrained", pretrained, ("9.6", "1.00", "0.74%"))
  add(config, "retrained", "retrained", retrained, ("9.6", "6.17", "0%"))
  for label, (variant, steps, published) in METHODS.items():
    run = siss_mnist.get_config(variant)
    run.train.steps = steps
    run.eval.update(before=False, every=0)
    add(config, label, variant, run, published)
  for run in config.runs.values():
    run.eval.nll_protocol = "siss"
  return config


def trained(module, asset: str) -> ConfigDict:
  """A trained model as it is: no step, evaluation only."""
  config = module.get_config()
  config.init_from = f"assets:{asset}"
  config.ema = 0.0
  config.train.steps = 0
  return config


def add(config: ConfigDict, label: str, name: str, run: ConfigDict, published: tuple) -> None:
  """A row: `run` once a seed, which moves the training draws and the evaluation's noise."""
  names = tuple(f"{name}_seed{seed}" for seed in SEEDS)
  for name_of_seed, seed in zip(names, SEEDS, strict=True):
    copy = run.copy_and_resolve_references()
    copy.seed = copy.eval.seed = seed
    copy.eval.features = True
    copy.eval.metrics += ("membership",)
    copy.eval.update(membership_attacks=("pia", "secmi"), membership_kept=256)
    config.runs[name_of_seed] = copy
  config.rows += ((label, names, published),)
