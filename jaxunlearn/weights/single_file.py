"""Single-file checkpoints of Stable Diffusion, by the names that CompVis's code gave its networks.

    model.diffusion_model.input_blocks.1.0.in_layers.2.weight     unet
    first_stage_model.decoder.up.3.block.0.conv1.weight           vae
    cond_stage_model.transformer.text_model...                    text encoder of 1.x: transformers'
    cond_stage_model.model.transformer.resblocks.0...             text encoder of 2.x: OpenCLIP's

A file says nothing of settings: those, the tokenizer and the scheduler are those of a model in
diffusers' layout with the same networks.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from jaxunlearn.models import text_unet, vae
from jaxunlearn.weights import arrays

State = Mapping[str, np.ndarray]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_1, TEXT_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
# What no part of diffusers' layout takes.
LEFT = re.compile(
  r"cond_stage_model\..*(position_ids|logit_scale|text_projection|attn_mask)$|first_stage_model\.loss\."
)
LAYER = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.")
_RESNET = {
  "norm1": "in_layers.0",
  "conv1": "in_layers.2",
  "time_emb_proj": "emb_layers.1",
  "norm2": "out_layers.0",
  "conv2": "out_layers.3",
  "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
  "time_embedding.linear_1": "time_embed.0",
  "time_embedding.linear_2": "time_embed.2",
  "conv_in": "input_blocks.0.0",
  "conv_norm_out": "out.0",
  "conv_out": "out.2",
}
_VAE_ATTENTION = {
  "group_norm": "norm",
  "to_q": "q",
  "to_k": "k",
  "to_v": "v",
  "to_out.0": "proj_out",
}
_OPENCLIP = {
  "embeddings.token_embedding.weight": "token_embedding.weight",
  "embeddings.position_embedding.weight": "positional_embedding",
  "final_layer_norm": "ln_final",
}
_OPENCLIP_LAYER = {
  "layer_norm1": "ln_1",
  "layer_norm2": "ln_2",
  "mlp.fc1": "mlp.c_fc",
  "mlp.fc2": "mlp.c_proj",
  "self_attn.out_proj": "attn.out_proj",
}


def parts(
  file: State, net: text_unet.Net, autoencoder: vae.Autoencoder, names: Mapping[str, Iterable[str]]
) -> dict[str, arrays.Arrays]:
  """The arrays of unet, vae and text_encoder by their names in diffusers' layout.

  Args:
    names: of the arrays that each part has in that layout.

  Raises:
    ValueError: an array is missing, or there is one of another network.
  """
  wanted: dict[str, dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]] = {
    "unet": {name: (UNET + unet_name(name, net), _same) for name in names["unet"]},
    "vae": {name: _vae(name, autoencoder) for name in names["vae"]},
    "text_encoder": {name: _text(name, file) for name in names["text_encoder"]},
  }
  used = {old for part in wanted.values() for old, _ in part.values()}
  if lost := sorted(used - set(file)):
    raise ValueError(
      f"the file has no {lost[0]!r}; name a --like whose networks are those of the file, and take "
      "a file with all three networks"
    )
  known = (UNET, VAE, TEXT_1, TEXT_2)
  others = {name for name in file if name.startswith(known) and not LEFT.match(name)}
  last = f"{TEXT_2}transformer.resblocks.{_layers(names['text_encoder'])}."
  if extra := sorted(name for name in others - used if not name.startswith(last)):
    raise ValueError(
      f"the file has {extra[0]!r}, for which the model of --like has no place; name one with the "
      "networks of the file"
    )
  made = lambda old, turned: lambda: turned(file[old])
  return {
    part: arrays.Arrays({new: made(*how) for new, how in own.items()})
    for part, own in wanted.items()
  }


def unet_name(name: str, net: text_unet.Net) -> str:
  """CompVis's name of an array of the UNet."""
  for new, old in _UNET_ENDS.items():
    if name.startswith(f"{new}."):
      return old + name.removeprefix(new)
  side, *rest = name.split(".")
  if side == "mid_block":
    kind, i, *tail = rest
    place = f"middle_block.{2 * int(i) if kind == 'resnets' else 1}"
    return f"{place}.{_inside(kind, tail)}"
  i, kind, j, *tail = rest
  layers = net.layers_per_block
  if side == "down_blocks":
    if kind == "downsamplers":
      return f"input_blocks.{(layers + 1) * (int(i) + 1)}.0.op.{tail[-1]}"
    place = f"input_blocks.{1 + (layers + 1) * int(i) + int(j)}"
  else:
    block = (layers + 1) * int(i)
    if kind == "upsamplers":
      after = 2 if net.up_block_types[int(i)].startswith("CrossAttn") else 1
      return f"output_blocks.{block + layers}.{after}.conv.{tail[-1]}"
    place = f"output_blocks.{block + int(j)}"
  return f"{place}.{0 if kind == 'resnets' else 1}.{_inside(kind, tail)}"


def _inside(kind: str, tail: list[str]) -> str:
  """Of a residual block, or of a transformer, whose names are the same."""
  return ".".join([_RESNET[tail[0]], *tail[1:]] if kind == "resnets" else tail)


def vae_name(name: str, net: vae.Autoencoder) -> str:
  """CompVis's name of an array of the autoencoder: its way up is counted from below."""
  side, *rest = name.split(".")
  match rest:
    case ["mid_block", "resnets", i, *tail]:
      rest = ["mid", f"block_{int(i) + 1}", *_shortcut(tail)]
    case ["mid_block", "attentions", _, *tail]:
      inner, last = ".".join(tail[:-1]), tail[-1]
      rest = ["mid", "attn_1", _VAE_ATTENTION[inner], last]
    case ["down_blocks", i, "resnets", j, *tail]:
      rest = ["down", i, "block", j, *_shortcut(tail)]
    case ["down_blocks", i, "downsamplers", _, *tail]:
      rest = ["down", i, "downsample", *tail]
    case ["up_blocks", i, kind, j, *tail]:
      level = str(len(net.block_out_channels) - 1 - int(i))
      inner_names = ["block", j, *_shortcut(tail)] if kind == "resnets" else ["upsample", *tail]
      rest = ["up", level, *inner_names]
    case ["conv_norm_out", last]:
      rest = ["norm_out", last]
  return ".".join([side, *rest])


def _shortcut(tail: list[str]) -> list[str]:
  return ["nin_shortcut" if word == "conv_shortcut" else word for word in tail]


def _vae(name: str, net: vae.Autoencoder) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
  """Attention's products are convolutions of 1 x 1 there."""
  flat = ".attentions." in name and name.endswith(".weight") and "group_norm" not in name
  return VAE + vae_name(name, net), (
    lambda value: value.reshape(value.shape[:2])
  ) if flat else _same


def _text(name: str, file: State) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
  if any(one.startswith(TEXT_2) for one in file):
    old, third = openclip_name(name)
    return TEXT_2 + old, _same if third is None else (lambda value: np.split(value, 3)[third])
  whole = f"{TEXT_1}text_model.{name}"
  return (whole if whole in file else TEXT_1 + name), _same


def openclip_name(name: str) -> tuple[str, int | None]:
  """OpenCLIP's name of an array of the text encoder, and which third of it: q, k and v are one."""
  found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
  if not found:
    new = next((new for new in _OPENCLIP if name.startswith(new)), "")
    return _OPENCLIP.get(new, "") + name.removeprefix(new), None
  layer, inner, last = found.groups()
  place = f"transformer.resblocks.{layer}."
  if inner in _OPENCLIP_LAYER:
    return f"{place}{_OPENCLIP_LAYER[inner]}.{last}", None
  third = ("q_proj", "k_proj", "v_proj").index(inner.split(".")[1])
  return f"{place}attn.in_proj_{last}", third


def _layers(names: Iterable[str]) -> int:
  """Of the text encoder. Stable Diffusion 2 stops one before OpenCLIP's last."""
  return 1 + max(int(found[1]) for name in names if (found := LAYER.match(name)))


def _flat(value: np.ndarray) -> np.ndarray:
  return value.reshape(value.shape[:2])


def _same(value: np.ndarray) -> np.ndarray:
  return value
