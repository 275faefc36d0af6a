"""The public backbone of text-to-image compartments: the little Stable Diffusion of a safe set.

    python -m jaxunlearn.main --config=configs/pretrain_cdm_backbone.py --workdir=runs/cdm_backbone
    python -m jaxunlearn.export --run=runs/cdm_backbone --out=jaxunlearn/assets/cdm_backbone \\
        --half --license=apache-2.0

Emoji of seven groups; those of animals and food are left out, whole, and are what sources bring in
(configs/cdm_little_sd.py). Its autoencoder is that of the little Stable Diffusion: it has
seen all pictures, and is public.
"""

from configs import pretrain_little_sd

PRIVATE = ("Animals & Nature", "Food & Drink")  # groups that the backbone must not see


def get_config():
  config = pretrain_little_sd.get_config()
  config.data.update(without=PRIVATE, copies=0)
  config.codec.path = "assets:little_sd"
  config.train.steps = 2400
  return config
