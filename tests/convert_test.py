"""Single files by CompVis's and OpenCLIP's names, beside diffusers' own converters; and LoRA."""

import diffusers
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers.loaders import single_file_utils as theirs

from jaxunlearn.commands import convert
from jaxunlearn.models import text_unet, vae
from jaxunlearn.weights import lora, pretrained, single_file, stable_diffusion
from tests import tiny_pipeline

UNET = {
  "sample_size": 8,
  "block_out_channels": (8, 16, 16),
  "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 2,
  "norm_num_groups": 4,
  "cross_attention_dim": 12,
  "attention_head_dim": 4,
}


def single(model, text=None):
  """The arrays of a pipeline of diffusers as one file names them."""
  net = text_unet.Net(**{k: model.unet.config[k] for k in UNET})
  file = {
    single_file.UNET + single_file.unet_name(name, net): value
    for name, value in model.unet.state_dict().items()
  }
  channels = tuple(model.vae.config.block_out_channels)
  autoencoder = vae.Autoencoder(sample_size=16, block_out_channels=channels, norm_num_groups=4)
  for name, value in model.vae.state_dict().items():
    flat = ".attentions." in name and value.ndim == 2
    named = single_file.VAE + single_file.vae_name(name, autoencoder)
    file[named] = value[:, :, None, None] if flat else value
  for name, value in (text or model.text_encoder).state_dict().items():
    file[f"{single_file.TEXT_1}text_model.{name.removeprefix('text_model.')}"] = value
  return {name: value.numpy().copy() for name, value in file.items()}


def openclip(text):
  """A text encoder's arrays by OpenCLIP's names, q, k and v together."""
  state = {n.removeprefix("text_model."): v.numpy() for n, v in text.state_dict().items()}
  file = {}
  for name, value in state.items():
    if "q_proj" in name:
      layer, last = name.split(".")[2], name.rsplit(".")[-1]
      thirds = [state[name.replace("q_proj", f"{k}_proj")] for k in "qkv"]
      place = f"{single_file.TEXT_2}transformer.resblocks.{layer}.attn.in_proj_{last}"
      file[place] = np.concatenate(thirds)
    elif "_proj" not in name or "out_proj" in name:
      file[single_file.TEXT_2 + single_file.openclip_name(name)[0]] = value
  return file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("made")
  return folder, tiny_pipeline.write(folder)


def test_the_names_of_the_unet_are_those_that_diffusers_reads():
  unet = diffusers.UNet2DConditionModel(**UNET)
  net = text_unet.Net(**UNET)
  state = unet.state_dict()
  file = {single_file.UNET + single_file.unet_name(n, net): v for n, v in state.items()}
  assert len(file) == len(state)
  read = theirs.convert_ldm_unet_checkpoint(dict(file), dict(unet.config))
  assert read.keys() == state.keys()
  assert all(torch.equal(read[name], value) for name, value in state.items())


def test_the_names_of_the_autoencoder_are_those_that_diffusers_reads(made):
  model = made[1]
  file = {k: torch.tensor(v) for k, v in single(model).items()}
  read = theirs.convert_ldm_vae_checkpoint(file, dict(model.vae.config))
  state = model.vae.state_dict()
  assert read.keys() == state.keys()
  assert all(torch.equal(read[name], value) for name, value in state.items())


def test_the_names_of_openclip_are_those_that_diffusers_reads(made):
  text = made[1].text_encoder
  file = {k: torch.tensor(v) for k, v in openclip(text).items()}
  width = text.config.hidden_size
  file[f"{single_file.TEXT_2}text_projection"] = torch.zeros(width, width)
  read = theirs.convert_open_clip_checkpoint(text, file, prefix=single_file.TEXT_2)
  state = {n.removeprefix("text_model."): v for n, v in text.state_dict().items()}
  read = {n.removeprefix("text_model."): v for n, v in read.items()}
  assert state.keys() <= read.keys()
  assert all(torch.equal(read[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", ["1.x", "2.x"])
def test_a_single_file_becomes_the_folder_that_it_is(made, tmp_path, kind):
  folder, model = made
  file = single(model)
  if kind == "2.x":
    file = {k: v for k, v in file.items() if not k.startswith(single_file.TEXT_1)}
    file |= openclip(model.text_encoder)
    file[f"{single_file.TEXT_2}logit_scale"] = np.zeros(1, np.float32)
    # The last layer of OpenCLIP, which Stable Diffusion 2 leaves out.
    file[f"{single_file.TEXT_2}transformer.resblocks.2.ln_1.bias"] = np.zeros(12, np.float32)
  file["model_ema.decay"] = np.zeros(1, np.float32)
  safetensors.numpy.save_file(file, tmp_path / "one.safetensors")
  like = stable_diffusion.load(folder)
  zeros = jax.tree.map(np.zeros_like, like.params)
  stable_diffusion.save(tmp_path / "zeros", convert.dataclasses.replace(like, params=zeros))
  said = convert.convert(
    str(tmp_path / "zeros"), tmp_path / "out", str(tmp_path / "one.safetensors")
  )
  assert "one.safetensors" in said
  read = stable_diffusion.load(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, dict(read.params), dict(like.params))


def test_what_does_not_fit_is_refused(made, tmp_path):
  folder, model = made
  path = tmp_path / "one.safetensors"
  ask = lambda **more: convert.convert(str(folder), tmp_path / "out", **more)
  with pytest.raises(ValueError, match="--file and --lora are missing"):
    ask()
  with pytest.raises(ValueError, match=r"--lora=.*none\.safetensors is not there"):
    ask(lora_file=str(tmp_path / "none.safetensors"))
  file = single(model)
  lost = {k: v for k, v in file.items() if "input_blocks.1.0.in_layers.2.weight" not in k}
  safetensors.numpy.save_file(lost, path)
  with pytest.raises(ValueError, match=r"has no '.*input_blocks\.1\.0\.in_layers\.2\.weight'"):
    ask(file=str(path))
  extra = file | {f"{single_file.UNET}input_blocks.40.0.weight": np.zeros(1, np.float32)}
  safetensors.numpy.save_file(extra, path)
  with pytest.raises(ValueError, match=r"has '.*input_blocks\.40.*no place"):
    ask(file=str(path))
  name = f"{single_file.UNET}out.2.bias"
  safetensors.numpy.save_file(file | {name: np.zeros(7, np.float32)}, path)
  with pytest.raises(ValueError, match=r"conv_out\.bias"):
    ask(file=str(path))
  assert not (tmp_path / "out").exists()
  with pytest.raises(ValueError, match="holds files"):
    convert.convert(str(folder), folder, file=str(path))


def test_a_lora_is_merged(made, tmp_path):
  folder, _ = made
  model = stable_diffusion.load(folder)
  module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
  rng = np.random.default_rng(0)
  names = pretrained.views(model.params["unet"])
  width = names[f"{module.removeprefix('unet.')}.weight"].shape[1]
  a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, width), (width, 2)))
  state = {f"{module}.{lora.A}": a, f"{module}.{lora.B}": b}
  safetensors.numpy.save_file(state, tmp_path / "lora.safetensors")
  convert.convert(str(folder), tmp_path / "out", lora_file=str(tmp_path / "lora.safetensors"))
  moved = lora.merge({"unet": model.params["unet"]}, tmp_path / "lora.safetensors")
  read = stable_diffusion.load(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, read.params["unet"], moved["unet"])
