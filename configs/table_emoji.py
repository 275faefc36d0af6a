"""The colour experiment: methods on the embedded clown, 3 seeds, one command, resumable.

    python -m jaxunlearn.main --config=configs/table_emoji.py --workdir=runs/table_emoji

Writes results/siss_emoji.{md,json}.
"""

from ml_collections import ConfigDict

from configs import pretrain_emoji, siss_emoji
from configs.table_mnist import add, trained

# label -> (variant of siss_emoji, steps)
METHODS = {
  "naive deletion": ("naive", 60),
  "SISS λ=0.5": ("siss", 60),
  "SISS (No IS)": ("siss_no_is", 60),
  "NegGrad": ("neggrad", 60),
}
COLUMNS = (
  ("clown_rate", "clown rate"),
  ("nll_bpd", "NLL (bits/dim)"),
  ("copy_score", "copy score"),
  ("feature_fid", "feature FID"),
  ("membership_pia/deleted-p", "p, PIA"),
  ("membership_pia/deleted-p-high", "p of the other end, PIA"),
  ("membership_pia/kept-auc", "AUC of the kept, PIA"),
)


def get_config():
  config = ConfigDict({"runs": {}, "rows": (), "columns": COLUMNS, "out": "results/siss_emoji"})
  config.published = ()
  add(config, "pretrained", "pretrained", trained(pretrain_emoji, "pretrain_emoji"), ())
  for label, (variant, steps) in METHODS.items():
    run = siss_emoji.get_config(variant)
    run.train.steps = steps
    run.eval.update(before=False, every=0)
    add(config, label, variant, run, ())
  return config
