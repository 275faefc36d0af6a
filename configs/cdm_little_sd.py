"""Compartments of a little Stable Diffusion: LoRA a source, on a backbone that saw none of them.

    python -m jaxunlearn.main --config=configs/cdm_little_sd.py --workdir=runs/cdm_little_sd

The backbone, of pretrain_cdm_backbone.py, is embedded. `:KINDn` takes another split of the animals
and the food: class (emoji groups), style, or uniform (at random, the hard case), into n sources;
`:uniform1` is the monolith. A last word names what a source trains: lora, attn2, full (of the
UNet); like `:uniform8,attn2`. Then, for instance:

    python -m jaxunlearn.sample --from=runs/cdm_little_sd --sources=food-drink --out=a.png \\
        --prompt="food & drink emoji in noto style"
    python -m jaxunlearn.cdm.delete --run=runs/cdm_little_sd --ids=noto/whale --plan
"""

import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from configs import cdm_digits_clothes, common, pretrain_cdm_backbone

STEPS, BATCH, RANK = 240, 64, 4  # of the whole model: a source takes its n-th of the rows
KINDS = {
  "lora": {"name": "lora", "rank": RANK, "alpha": float(RANK), "pattern": "^unet/.*/attn[12]/to_"},
  "attn2": {"name": "subset", "pattern": "^unet/.*/attn2/"},
  "full": {"name": "subset", "pattern": "^unet/"},
}


def get_config(words: str = "class2"):
  return compartments(*variant(words, KINDS, "lora"))


def variant(words: str, kinds: Iterable[str], usual: str) -> tuple[str, int, str]:
  """(class, style or uniform; a number; a kind) of the words of a variant."""
  split, _, kind = words.partition(",")
  match = re.fullmatch(r"(class|style|uniform)(\d+)", split)
  if not match or (kind or usual) not in kinds:
    raise ValueError(
      f"variant {words!r}; give class, style or uniform, a number, and maybe one of "
      f"{', '.join(kinds)}, like uniform8,{usual}"
    )
  return match[1], int(match[2]), kind or usual


def compartments(by: str, n: int, kind: str = "lora") -> ConfigDict:
  config = pretrain_cdm_backbone.get_config()
  config.init_from = "assets:cdm_backbone"
  config.data = common.source("emoji", groups=pretrain_cdm_backbone.PRIVATE, size=64, heldout=4)
  config.prompts.template = "{class} emoji in {style} style"
  config.compartment = ConfigDict(KINDS[kind])
  config.optimizer.learning_rate = 1e-3
  return settings(config, by, n)


def settings(config: ConfigDict, by: str, n: int) -> ConfigDict:
  """Of n sources on a backbone of latents: how they are split, trained, composed and measured."""
  config.sources = ConfigDict(cdm_digits_clothes.sources(by, n))
  config.router = ConfigDict(
    {"name": "decoded", "k": 8, "features": "emoji", "temperature": 0.05, "every": 4}
  )
  config.compose = ConfigDict(cdm_digits_clothes.compose(n))
  config.compose.update(alone=False, attributed=0, over="vmap", rows=16)
  config.optimizer.update(schedule="constant", warmup=20, weight_decay=0.0)
  config.ema = 0.99
  config.train.update(steps=STEPS, batch=max(BATCH // n, 4), checkpoint_every=STEPS // 4)
  config.eval.update(
    metrics=("feature_fid", "real_fid", "alignment", "nearest_training"),
    samples=256,
    sampler="dpm",
    steps=8,
    guidance=2.0,
    reference="heldout",
    classifier="emoji",
    style_classifier="decoded_noto_twemoji",
  )
  return config
