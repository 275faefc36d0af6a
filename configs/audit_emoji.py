"""A style and a class unlearned from a model of both, attacked: UA, IRA and CRA of UnlearnCanvas.

    python -m jaxunlearn.main --config=configs/audit_emoji.py --workdir=runs/audit_emoji

The style twemoji and the group Flags, three seeds; writes results/audit_emoji.{md,json} and
report.html in the working directory. Finished runs are skipped; launched twice at once it uses two
cores.
"""

from configs import audits, pretrain_styles

TARGETS = {"twemoji": "style", "Flags": "label"}
ATTACKS = (
  ("ar_dimra", "AR DiMRA, kept", (("dimra_retain", 1e-3),)),
  ("ar_few_10", "AR 10 images", (("few_10", 3e-5), ("few_10", 3e-4))),
  ("ar_inversion", "AR inversion", (("inversion", 5e-2),)),
)
COLUMNS = (
  ("ua", "UA"),
  ("ira", "IRA"),
  ("cra", "CRA"),
  ("worst_ira", "worst IRA"),
  ("feature_fid", "feature FID"),
  ("retain_grad_norm", "retain gradient"),
)


def get_config():
  base = pretrain_styles.get_config()
  seeds, models = (0, 1, 2), "styles"
  return audits.audit("emoji", base, TARGETS, ATTACKS, COLUMNS, seeds, models, apart=True)
