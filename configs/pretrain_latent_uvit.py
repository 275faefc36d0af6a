"""A class-conditional latent U-ViT, the other public backbone of compartments: emoji of 64 px.

    python -m jaxunlearn.main --config=configs/pretrain_latent_uvit.py --workdir=runs/latent_uvit

By group and style, on the latents of the little Stable Diffusion's autoencoder. It sees the same
seven groups as pretrain_cdm_backbone.py; the two that are left out are classes of which it has seen
no picture.
"""

from ml_collections import ConfigDict

from configs import common, pretrain_cdm_backbone


def get_config():
  config = pretrain_cdm_backbone.get_config()
  config.model = ConfigDict({"name": "uvit", **model()})
  del config.prompts
  config.data = common.source("emoji", size=64, without=pretrain_cdm_backbone.PRIVATE)
  config.optimizer.update(learning_rate=5e-4, weight_decay=3e-2)
  config.train.steps = 3000
  config.eval.update(guidance=1.0)
  return config


def model() -> dict:
  """16 x 16 latents in 64 patches: 1.5M parameters."""
  return {
    "sample_size": 16,
    "in_channels": 4,
    "patch_size": 2,
    "width": 128,
    "depth": 6,
    "heads": 4,
    "classes": (9, 2),
    "dtype": "float32",
  }
