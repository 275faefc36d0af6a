"""Compartments of a class-conditional latent U-ViT: deep prompts a source, on a frozen backbone.

    python -m jaxunlearn.main --config=configs/pretrain_latent_uvit.py --workdir=runs/latent_uvit
    python -m jaxunlearn.main --config=configs/cdm_latent_uvit.py --workdir=runs/cdm_latent_uvit

The sources are those of cdm_little_sd.py, with the same `:KINDn` and kinds: prompts (eight tokens
for each group and style, in every block), lora, full.
"""

from ml_collections import ConfigDict

from configs import cdm_little_sd, common, pretrain_latent_uvit

PUBLIC = (  # all groups but pretrain_cdm_backbone.PRIVATE
  "Activities",
  "Flags",
  "Objects",
  "People & Body",
  "Smileys & Emotion",
  "Symbols",
  "Travel & Places",
)
KINDS = {
  "prompts": {"name": "prompts", "per_class": 8},
  "lora": {"name": "lora", "rank": 4, "alpha": 4.0},
  "full": {"name": "full"},
}
RATES = {"prompts": 1e-2, "lora": 1e-3, "full": 3e-4}


def get_config(words: str = "class2"):
  return compartments(*cdm_little_sd.variant(words, KINDS, "prompts"))


def compartments(by: str, n: int, kind: str = "prompts") -> ConfigDict:
  config = pretrain_latent_uvit.get_config()
  config.init_from = "runs/latent_uvit"
  config.data = common.source("emoji", size=64, without=PUBLIC, heldout=4)
  config.compartment = ConfigDict(KINDS[kind])
  config.optimizer.learning_rate = RATES[kind]
  return cdm_little_sd.settings(config, by, n)
