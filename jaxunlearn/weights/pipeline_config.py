"""config.json of the networks of Stable Diffusion <-> the fields of ours.

As diffusers_config.py has it for one UNet: what a file asks for and ours lacks is refused, what it
leaves out is as the class has it. transformers' configs name many fields that no state depends on:
of those only the ones below are read.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxunlearn.models import clip, text_unet, vae
from jaxunlearn.weights.scheduler_config import VERSION, check_fixed, checked

UNET, VAE, TEXT = "UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"


@dataclasses.dataclass(frozen=True)
class Kind:
  """One class of networks."""

  name: str
  net: type
  free: Mapping[str, Any]  # the fields that ours has, with the defaults of the class
  fixed: Mapping[str, Any]  # those that it has at this value only
  idle: tuple[str, ...] = ()  # no output depends on them
  strict: bool = True  # an unknown field is refused

  def read(self, config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The fields of our network from those of a config.json, which `path` names in errors.

    Raises:
      ValueError: another class, a field that ours lacks, or numbers that fit no network.
    """
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    if named != self.name:
      raise ValueError(f"{path} describes {named or 'no model'!r} and {self.name} is needed")
    given = {name: value for name, value in config.items() if value is not None}
    check_fixed(given, self.fixed, path)
    known = (*self.free, *self.fixed, *self.idle)
    for name, value in given.items() if self.strict else ():
      if name not in known and not name.startswith("_"):
        raise ValueError(
          f"{path}: {name} is {value!r}, which is not implemented; take weights without it"
        )
    fields = {name: _plain(given.get(name, default)) for name, default in self.free.items()}
    if isinstance(size := fields.get("sample_size"), tuple) and len(set(size)) == 1:
      fields["sample_size"] = size[0]
    return checked(self.net, fields, path)

  def write(self, net: Any) -> dict[str, Any]:
    """config.json of our network."""
    fields = {name: getattr(net, name) for name in self.free}
    return {"_class_name": self.name, "_diffusers_version": VERSION, **fields}


_UNET = Kind(
  UNET,
  text_unet.Net,
  free={
    "sample_size": 64,  # None in the class, whose pipeline then takes 64
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "dropout": 0.0,
  },
  fixed={
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "transformer_layers_per_block": 1,
    "dual_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
  },
  # upcast_attention: our scores are float32 always.
  idle=("upcast_attention", "addition_embed_type_num_heads", "num_attention_heads"),
)
_VAE = Kind(
  VAE,
  vae.Autoencoder,
  free={
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
  },
  fixed={
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
  },
  idle=("force_upcast", "down_block_types", "up_block_types"),  # our decoder is float32
)
_TEXT = Kind(
  TEXT,
  clip.Text,
  free={
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
  },
  fixed={"use_attention_mask": False},
  strict=False,
)


def read_unet(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields of text_unet.Net; raises ValueError as `Kind.read`."""
  heads = config.get("num_attention_heads")
  if heads is not None and heads != config.get("attention_head_dim", 8):
    raise ValueError(
      f"{path}: num_attention_heads is {heads!r} beside attention_head_dim, which is the number of "
      "heads in all published files; take weights without it"
    )
  return _UNET.read(config, path)


def write_unet(net: text_unet.Net) -> dict[str, Any]:
  return _UNET.write(net)


def read_vae(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields of vae.Autoencoder; raises ValueError as `Kind.read`."""
  for field, block in _blocks(1).items():
    if other := set(config.get(field, block)) - set(block):
      raise ValueError(f"{path}: {field} has {min(other)!r} and only {block[0]} is implemented")
  return _VAE.read(config, path)


def write_vae(net: vae.Autoencoder) -> dict[str, Any]:
  return _VAE.write(net) | _blocks(len(net.block_out_channels))


def _blocks(levels: int) -> dict[str, list[str]]:
  return {
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
  }


def read_text(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The fields of clip.Text; raises ValueError as `Kind.read`."""
  return _TEXT.read(config, path)


def write_text(net: clip.Text) -> dict[str, Any]:
  """With the ids that all of Stable Diffusion's folders give, wrong as they are: see transformers.

  `eos_token_id` 2 makes transformers look for the largest id, which is the end token.
  """
  return {
    "architectures": [TEXT],
    "model_type": "clip_text_model",
    **{name: getattr(net, name) for name in _TEXT.free},
    "projection_dim": net.hidden_size,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
  }


def _plain(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
