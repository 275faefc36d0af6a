"""A tiny text-to-image pipeline with random weights, made by diffusers and transformers."""

import json

import diffusers
import torch
import transformers

from jaxunlearn.weights import tokenizer
from jaxunlearn.weights.tokenizer import END, START
from tests.unet_parity import unlike_new

MERGES = ("t h", "th e</w>", "a n", "an d</w>", "e m", "em o", "o j", "oj i</w>", "w h", "wh a")
LENGTH = 12
UNET = {
  "sample_size": 8,
  "block_out_channels": (16,),
  "down_block_types": ("CrossAttnDownBlock2D",),
  "up_block_types": ("CrossAttnUpBlock2D",),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 12,
  "attention_head_dim": 4,
}
VAE = {
  "sample_size": 16,
  "block_out_channels": (8, 16),
  "down_block_types": ["DownEncoderBlock2D"] * 2,
  "up_block_types": ["UpDecoderBlock2D"] * 2,
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "scaling_factor": 0.3,
}
TEXT = {
  "hidden_size": 12,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": LENGTH,
  "bos_token_id": 0,
  "eos_token_id": 2,
  "pad_token_id": 1,
}
SCHEDULER = {  # of Stable Diffusion 1
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "num_train_timesteps": 1000,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "set_alpha_to_one": False,
}


def write_tokenizer(path, length=LENGTH, pad=END):
  """A tokenizer's folder: the 512 letters, ten merges and the two special tokens."""
  path.mkdir(parents=True, exist_ok=True)
  letters = printable()
  words = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in MERGES)]
  vocabulary = {token: i for i, token in enumerate([*words, START, END])}
  (path / "vocab.json").write_text(json.dumps(vocabulary))
  (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
  config = {"pad_token": pad, "model_max_length": length}
  (path / "tokenizer_config.json").write_text(json.dumps(config))
  return path


def printable():
  """CLIP's characters for the 256 bytes, in its order: those that print, then the others."""
  keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
  shown = {byte: chr(byte) for byte in keep}
  hidden = [byte for byte in range(256) if byte not in shown]
  return [shown[b] for b in keep] + [chr(256 + i) for i in range(len(hidden))]


def write(folder, **scheduler):
  """Saves the pipeline into the folder, with a PNDM scheduler; returns it as diffusers has it."""
  words = write_tokenizer(folder / "tokenizer")
  torch.manual_seed(0)
  text = transformers.CLIPTextConfig(**TEXT, vocab_size=tokenizer.load(words).vocabulary)
  made = diffusers.StableDiffusionPipeline(
    vae=unlike_new(diffusers.AutoencoderKL(**VAE)).eval(),
    text_encoder=unlike_new(transformers.CLIPTextModel(text)).eval(),
    tokenizer=transformers.CLIPTokenizer.from_pretrained(words, pad_token=END),
    unet=unlike_new(diffusers.UNet2DConditionModel(**UNET)).eval(),
    scheduler=diffusers.PNDMScheduler(**{**SCHEDULER, **scheduler}),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  made.save_pretrained(folder)
  made.set_progress_bar_config(disable=True)
  return made
