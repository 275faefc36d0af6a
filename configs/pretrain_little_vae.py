"""The autoencoder of the little Stable Diffusion: emoji of 64 px to latents of 16 x 16 x 4.

python -m jaxunlearn.main --config=configs/pretrain_little_vae.py --workdir=runs/little_vae
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from jaxunlearn.latents.loss import Loss
from jaxunlearn.models import vae


def get_config():
  base, config = common.get_config(), ConfigDict()
  config.seed, config.ema = 0, 0.999
  config.data = common.source("emoji", size=64)
  net = vae.Autoencoder(
    sample_size=64, block_out_channels=(24, 48, 64), layers_per_block=1, norm_num_groups=8
  )
  config.autoencoder = ConfigDict(dataclasses.asdict(net))
  config.loss = ConfigDict(dataclasses.asdict(Loss(kl=1e-3, crop=32, crop_share=0.9)))
  config.optimizer = base.optimizer
  config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup=200, clip=None)
  config.train = ConfigDict(
    {"steps": 10000, "batch": 32, "log_every": 20, "checkpoint_every": 500, "keep": 2}
  )
  return config
