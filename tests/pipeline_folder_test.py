"""Whole text-to-image folders: diffusers' in, the same pictures, and out again into diffusers."""

import json

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxunlearn import data
from jaxunlearn.diffusion import sampling
from jaxunlearn.weights import layout, scheduler_config, stable_diffusion, tokenizer
from tests import tiny_pipeline
from tests.unet_parity import distance, nchw

PROMPT, STEPS, SCALE = "the emoji and a whale", 6, 7.5
SCHEDULERS = {
  "PNDMScheduler": {},
  "DDIMScheduler": {"clip_sample": False, "prediction_type": "v_prediction"},
  "EulerDiscreteScheduler": {"timestep_spacing": "leading"},
  "DPMSolverMultistepScheduler": {},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(folder, the pipeline of diffusers that it was saved from)."""
  folder = tmp_path_factory.mktemp("made")
  return folder, tiny_pipeline.write(folder)


def noise(model):
  return np.random.default_rng(5).normal(size=(1, *model.unet.image_shape)).astype(np.float32)


def theirs(pipe, x, steps=STEPS):
  """The latent and the picture that diffusers makes of the noise x."""
  run = lambda kind: (
    pipe(
      PROMPT,
      num_inference_steps=steps,
      guidance_scale=SCALE,
      latents=torch.tensor(nchw(x)),
      output_type=kind,
    ).images
  )
  return np.moveaxis(run("latent").numpy(), 1, -1), run("np")


def ours(model, x, steps=STEPS):
  name, options = scheduler_config.sampler_of(model.sampler, model.scheduler)
  z = sampling.sample(
    model.eps_fn([PROMPT], SCALE),
    model.process,
    jax.random.key(0),
    x,
    np.zeros(1, np.int32),
    sampler=name,
    steps=steps,
    options=options,
  )
  pictures = model.codec.decode(np.asarray(z))
  return np.asarray(z), np.clip(pictures / 2 + 0.5, 0, 1)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_same_pictures_in_and_out_of_diffusers(made, tmp_path, scheduler):
  pipe = made[1]
  kind = getattr(diffusers, scheduler)
  pipe.scheduler = kind.from_config(pipe.scheduler.config, **SCHEDULERS[scheduler])
  pipe.save_pretrained(tmp_path / "in")
  model = stable_diffusion.load(tmp_path / "in")
  x = noise(model)
  z, picture = theirs(pipe, x)
  got_z, got = ours(model, x)
  assert distance(got_z, z) < 1e-4 and np.abs(got - picture).max() < 1e-3
  stable_diffusion.save(tmp_path / "out", model)
  again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
  assert type(again.scheduler).__name__ == scheduler
  again.set_progress_bar_config(disable=True)
  back_z, back = theirs(again, x)
  assert distance(back_z, z) < 1e-5 and np.abs(back - picture).max() < 1e-5
  assert stable_diffusion.load(tmp_path / "out").process == model.process


@pytest.mark.parametrize(
  ("scheduler", "steps"),
  [("PNDMScheduler", 50), ("DDIMScheduler", 20), ("EulerDiscreteScheduler", 20)],
)
def test_the_embedded_model_draws_the_same_here_and_there(tmp_path, scheduler, steps):
  folder = data.ASSETS / "little_sd"
  assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10e6
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
  kind = getattr(diffusers, scheduler)
  pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="leading")
  pipe.set_progress_bar_config(disable=True)
  pipe.save_pretrained(tmp_path / "in")
  model = stable_diffusion.load(tmp_path / "in")
  x = noise(model)
  picture, want = ours(model, x, steps)[1], theirs(pipe, x, steps)[1]
  assert np.abs(picture - want).max() < 1e-3 and float(picture.std()) > 0.1
  stable_diffusion.save(tmp_path / "out", model)
  again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
  again.set_progress_bar_config(disable=True)
  assert np.abs(theirs(again, x, steps)[1] - want).max() < 1e-3


def test_old_names_half_precision_and_shards(made, tmp_path):
  """What published folders have: see traps in the docstring of weights/stable_diffusion.py."""
  folder, pipe = made
  want = stable_diffusion.load(folder)
  pipe.save_pretrained(tmp_path, variant="fp16")
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  path = tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors"
  state = safetensors.numpy.load_file(path)
  renamed = {}
  for name, value in state.items():
    for new, was in old.items():
      if ".attentions.0." in name:
        name = name.replace(f".{new}.", f".{was}.")
    renamed[name] = value
  assert renamed.keys() != state.keys()
  safetensors.numpy.save_file(renamed, path)
  path = tmp_path / "text_encoder" / "model.fp16.safetensors"
  state = safetensors.numpy.load_file(path)
  bare = {name.removeprefix("text_model."): value for name, value in state.items()}
  bare["embeddings.position_ids"] = np.arange(tiny_pipeline.LENGTH)[None]
  safetensors.numpy.save_file(bare, path)
  pipe.unet.save_pretrained(tmp_path / "unet", max_shard_size="50KB")
  (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
  config = tmp_path / "unet" / "config.json"
  nulls = {"class_embed_type": None, "num_class_embeds": None, "dual_cross_attention": False}
  config.write_text(json.dumps({**json.loads(config.read_text()), **nulls}))
  got = stable_diffusion.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
  assert (got.unet, got.vae, got.text) == (want.unet, want.vae, want.text)


@pytest.mark.parametrize(
  ("part", "field", "value", "error"),
  [
    ("unet", "cross_attention_dim", 13, "unet has 13 text states and text_encoder 12 states"),
    ("unet", "in_channels", 5, "unet has 5 in_channels and vae 4 latents; take both from one"),
    ("unet", "mid_block_type", "UNetMidBlock2D", "mid_block_type is 'UNetMidBlock2D' and only"),
    ("unet", "encoder_hid_dim", 7, "encoder_hid_dim is 7, which is not implemented"),
    ("unet", "num_attention_heads", 2, "num_attention_heads is 2 beside attention_head_dim"),
    ("vae", "use_quant_conv", False, "use_quant_conv is False and only True is implemented"),
    ("vae", "up_block_types", ["AttnUpDecoderBlock2D"], "has 'AttnUpDecoderBlock2D' and only"),
    ("vae", "_class_name", "AutoencoderTiny", "describes 'AutoencoderTiny' and AutoencoderKL is"),
    ("text_encoder", "max_position_embeddings", 77, "text_encoder has 77 places and tokenizer 12"),
    ("text_encoder", "vocab_size", 7, "text_encoder has 7 tokens and tokenizer 524 tokens"),
    ("text_encoder", "hidden_act", "relu", "no hidden_act 'relu'"),
    ("scheduler", "_class_name", "UnknownScheduler", "no scheduler 'UnknownScheduler'"),
  ],
)
def test_parts_that_do_not_fit_are_refused(made, tmp_path, part, field, value, error):
  made[1].save_pretrained(tmp_path)
  path = tmp_path / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
  path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
  with pytest.raises(ValueError, match=error):
    stable_diffusion.load(tmp_path)


@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder"])
def test_a_folder_without_a_part_is_refused(made, tmp_path, part):
  made[1].save_pretrained(tmp_path)
  (tmp_path / part).rename(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match=rf"{part} does not exist; give the whole folder"):
    stable_diffusion.load(tmp_path)


def test_a_long_prompt_is_cut_and_said(made, caplog):
  model = stable_diffusion.load(made[0])
  states = model.states(["emoji " * 20, "emoji"])
  assert states.shape == (3, tiny_pipeline.LENGTH, 12)
  assert "is cut to 12 tokens; left out is" in caplog.text


def test_whose_weights_they_are(made, caplog, monkeypatch):
  path = made[0] / "unet" / layout.WEIGHTS
  digest = stable_diffusion.weights.sha256(path)
  known = {path.stat().st_size: (digest[:12], "the UNet of somebody")}
  monkeypatch.setattr(stable_diffusion, "PUBLISHED", known)
  with caplog.at_level("INFO", logger="absl"):
    stable_diffusion.load(made[0])
  assert "is the UNet of somebody" in caplog.text


def test_a_licence_goes_with_the_weights(made, tmp_path):
  model = stable_diffusion.load(made[0])
  (made[0] / "LICENSE.md").write_text("use limits")
  stable_diffusion.save(tmp_path, model)
  assert (tmp_path / "LICENSE.md").read_text() == "use limits"
  assert tokenizer.load(tmp_path / "tokenizer").length == tiny_pipeline.LENGTH
