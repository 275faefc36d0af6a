"""A compartmentalised model of digits and clothes, composed while sampling, on CPU and offline.

    python -m jaxunlearn.main --config=configs/cdm_digits_clothes.py --workdir=runs/cdm

`:KINDn` takes another split: folder (digits, clothes), class or uniform (at random, the hard case),
into n sources; `:uniform1` is the monolith. Then, for instance:

    python -m jaxunlearn.cdm.delete --run=runs/cdm --source=class-0
    python -m jaxunlearn.cdm.verify --run=runs/cdm

Expected: results/cdm_*.md.
"""

import re

from ml_collections import ConfigDict

from configs import common, pretrain_digits_clothes

STEPS, BATCH = 800, 64  # of the whole model: a source takes its n-th of the rows


def get_config(split: str = "class4"):
  match = re.fullmatch(r"(folder|class|uniform)(\d+)", split)
  if not match:
    raise ValueError(f"split {split!r}; give folder, class or uniform and a number, like uniform8")
  return compartments(match[1], int(match[2]))


def compartments(by: str, n: int) -> ConfigDict:
  config = pretrain_digits_clothes.get_config()
  config.init_from = "assets:pretrain_digits_clothes"
  config.data = common.source("digits_clothes", part="private")
  config.sources = ConfigDict(sources(by, n))
  config.compartment = ConfigDict({"name": "full"})  # or subset, lora, prompts
  config.router = ConfigDict({"name": "kmeans"})
  config.compose = ConfigDict(compose(n))
  config.optimizer.update(learning_rate=3e-4, warmup=20)
  config.ema = 0.99
  config.train.update(steps=STEPS, batch=BATCH // max(n, 1), checkpoint_every=STEPS // 4)
  config.eval.update(metrics=("feature_fid",), samples=512)
  return config


def sources(by: str, n: int) -> dict:
  """config.sources of so many sources."""
  return {
    "by": by,  # folder, class, style, uniform, or file:PATH of a CSV with id,source
    "n": n,  # 0: one for each value
    "slices": 4,  # parts of the training at which records come in
    "lanes": 1,  # sources trained at once, over the devices; kept for exact deletion
    "mesh": 1,  # groups of devices that the sources lie over while sampling; -1: all that divide
    "absent": (),  # sources that are yet to come: cdm/add.py
  }


def compose(n: int) -> dict:
  """config.compose of so many sources."""
  return {
    "modes": ("trajectory", "naive", "step", "soft", "top1", "top2") if n != 1 else ("naive",),
    "alone": n != 1,  # each source by itself too
    "subset": (),  # only these sources, as an access right may say; (): all
    "over": "scan",  # one after the other, faster for convolutions on CPU; or vmap
    "block": 8,
    "rows": 0,  # evaluated at once where all networks are; 0: all
    "seed": 0,
    "attributed": 4,  # samples that are told apart by source
    "attribution_probes": 16,
    "calibration_levels": 10,
  }
