"""A little Stable Diffusion: emoji of 64 px by their captions, in two styles, on CPU.

    python -m jaxunlearn.main --config=configs/pretrain_little_vae.py --workdir=runs/little_vae
    python -m jaxunlearn.main --config=configs/pretrain_little_sd.py --workdir=runs/little_sd

UNet and text encoder from scratch, together, on the latents of the autoencoder that the first
command trains. Eight pictures are shown 41 times as often, under prompts of their own: they are
memorised.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from jaxunlearn import latents, prompts
from jaxunlearn.models import clip, text_unet

TOKENS = 4132


def get_config():
  config = common.get_config()
  config.model = ConfigDict({"name": "text_to_image", **model(), "classes": ()})
  config.prompts = ConfigDict(dataclasses.asdict(prompts.Options(tokenizer="assets:little_sd")))
  config.codec = ConfigDict(dataclasses.asdict(latents.Options(path="runs/little_vae", batch=64)))
  config.data = common.source("emoji_captions")
  config.process.update(schedule="scaled_linear", beta_1=0.00085, beta_T=0.012)
  config.sampler.update(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
  config.scheduler = ConfigDict({"class_name": "PNDMScheduler", "skip_prk_steps": True})
  config.method = common.method("denoising", c_dropout=0.1)
  config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup=200, weight_decay=1e-2)
  config.ema = 0.999
  config.train.update(steps=5000, batch=64, log_every=20, checkpoint_every=250)
  config.eval.update(
    before=False,
    metrics=(),
    samples=128,
    batch=64,
    sampler="plms",
    steps=30,
    guidance=3.0,
    reference="heldout",
  )
  return config


def model() -> dict:
  """UNet of 16 x 16 latents and a text encoder of 32 places: 3.9M parameters in all."""
  unet = text_unet.Net(
    sample_size=16,
    block_out_channels=(48, 80, 96),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=128,
    norm_num_groups=16,
  )
  text = clip.Text(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=TOKENS,
    max_position_embeddings=32,
    end=TOKENS - 1,
  )
  return {"unet": dataclasses.asdict(unet), "text": dataclasses.asdict(text)}
