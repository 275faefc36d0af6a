"""The whole story of unlearning a class: every method, attacked, in one table and report.

    python -m jaxunlearn.main --config=configs/audit_fashion.py --workdir=runs/audit_fashion

Two classes to forget, three seeds; writes results/audit_fashion.{md,json} and report.html in the
working directory. Finished runs are skipped; launched twice at once it uses two cores.
"""

from configs import audits, pretrain_fashion

TARGETS = {"Trouser": "label", "Sneaker": "label"}
# metric, title, variants of attack_fashion and their learning rates
ATTACKS = (
  ("ar_dimra", "AR DiMRA, kept", (("dimra_retain", 1e-3),)),
  ("ar_dimra_samples", "AR DiMRA, samples", (("dimra_samples", 1e-3),)),
  ("ar_dimra_public", "AR DiMRA, digits", (("dimra_public", 1e-3),)),
  ("ar_few_1", "AR 1 image", (("few_1", 1e-4),)),
  ("ar_few_10", "AR 10 images", (("few_10", 3e-5), ("few_10", 3e-4))),
  ("ar_few_100", "AR 100 images", (("few_100", 1e-4),)),
  ("ar_inversion", "AR inversion", (("inversion", 1e-2), ("inversion", 5e-2))),
)
COLUMNS = (
  ("ua", "UA"),
  ("ira", "kept accuracy"),
  ("worst_ira", "worst class"),
  ("feature_fid", "feature FID"),
  ("retain_grad_norm", "retain gradient"),
)


def get_config():
  base = pretrain_fashion.get_config()
  return audits.audit("fashion", base, TARGETS, ATTACKS, COLUMNS, seeds=(0, 1, 2))
