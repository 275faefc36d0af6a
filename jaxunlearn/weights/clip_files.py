"""CLIP, texts and pictures: OpenAI's RN50 in a file, or a folder of transformers' CLIPModel.

vision    the tower of pictures alone, of a CLIPModel or a CLIPVisionModel
openai    text: `in_proj_weight` is query, key and value one below the other;
          `text_projection` stands transposed. Pictures: `visual.`, names as in a ResNet
folder    config.json with text_config and vision_config, the weights, and the tokenizer
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from jaxunlearn import weights
from jaxunlearn.models import clip, clip_resnet
from jaxunlearn.weights import Published, extractors, layout, pretrained, tokenizer

RN50 = Published(
  what="CLIP's RN50",
  url=(
    "https://openaipublic.azureedge.net/clip/models/"
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
  ),
  field="config.eval.clip_iqa_weights",
  sha256="afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of CLIP's pictures, in [0, 1]
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
HEAD, STAGES = 64, (1, 2, 3, 4)  # channels of each head of attention; stages of a ResNet
FOLDER_FIELD, EXAMPLE = "config.eval.clip_weights", "openai/clip-vit-large-patch14"
_BLOCKS = {  # OpenAI's names in a layer of the text tower -> transformers'
  "ln_1": "layer_norm1",
  "ln_2": "layer_norm2",
  "attn.out_proj": "self_attn.out_proj",
  "mlp.c_fc": "mlp.fc1",
  "mlp.c_proj": "mlp.fc2",
}
_TOP = {
  "token_embedding.weight": "embeddings.token_embedding.weight",
  "positional_embedding": "embeddings.position_embedding.weight",
  "ln_final.weight": "final_layer_norm.weight",
  "ln_final.bias": "final_layer_norm.bias",
}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(\w+)")
_UNUSED = ("logit_scale", "input_resolution", "context_length", "vocab_size")
_POSITIONS = "visual.attnpool.positional_embedding"  # CLIP-IQA leaves them out


@dataclasses.dataclass(frozen=True, eq=False)
class OfResNet:
  """A CLIP whose picture side is a ResNet, of OpenAI's names."""

  text: clip.Text
  vision: clip_resnet.ResNet
  params: Mapping[str, Any]  # text, vision


def openai(state: Mapping[str, np.ndarray]) -> OfResNet:
  """The model that OpenAI's state dict is of; its sizes are those of the arrays.

  Raises:
    ValueError: a weight is missing, left over, or of another shape.
  """
  left = {name: value for name, value in state.items() if name not in (*_UNUSED, _POSITIONS)}
  part = lambda visual: {n: v for n, v in left.items() if n.startswith("visual.") == visual}
  try:
    text, vision = _text_net(left), clip_resnet.ResNet(_size(left))
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"these are not the weights of {RN50.what} ({error}); fetch {RN50.url}"
    ) from error
  tower = pretrained.from_state_dict(
    dict(_text(part(False))), jax.eval_shape(text.init, jax.random.key(0))
  )
  return OfResNet(text, vision, {"text": tower, "vision": _vision(part(True), vision)})


def _vision(state: Mapping[str, np.ndarray], net: clip_resnet.ResNet) -> Any:
  """The parameters of the ResNet; raises ValueError unless they are all there and no others."""
  kept = {n.removeprefix("visual."): v for n, v in state.items() if "num_batches" not in n}
  params = {extractors.resnet_name(name, v): extractors.to_flax(v) for name, v in kept.items()}
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
  flat = traverse_util.flatten_dict(shapes, sep=".").items()
  RN50.check_shapes(params, frozenset((name, leaf.shape) for name, leaf in flat))
  return traverse_util.unflatten_dict(params, sep=".")


def _text_net(state: Mapping[str, np.ndarray]) -> clip.Text:
  """The text tower that the arrays are of."""
  (places, width), (words, _) = (
    state[name].shape for name in ("positional_embedding", "token_embedding.weight")
  )
  return clip.Text(
    hidden_size=width,
    intermediate_size=4 * width,
    num_hidden_layers=len({m[1] for name in state if (m := _LAYER.fullmatch(name))}),
    num_attention_heads=width // HEAD,
    projection_dim=state["text_projection"].shape[1],
    vocab_size=words,
    max_position_embeddings=places,
    end=words - 1,
  )


def _size(state: Mapping[str, np.ndarray]) -> clip_resnet.Size:
  """Of the ResNet that the arrays are of."""
  blocks = [
    len({n.split(".")[2] for n in state if n.startswith(f"visual.layer{i}.")}) for i in STAGES
  ]
  output, channels = state["visual.attnpool.c_proj.weight"].shape
  return clip_resnet.Size(
    tuple(blocks), state["visual.conv3.weight"].shape[0], channels // HEAD, output
  )


def _text(state: Mapping[str, np.ndarray]) -> Any:
  """(transformers' name, value) of every array of OpenAI's text tower."""
  for name, value in state.items():
    if name == "text_projection":
      yield "text_projection.weight", value.T
    elif match := _LAYER.fullmatch(name):
      layer, part, kind = match.groups()
      if part == "attn" and kind.startswith("in_proj_"):
        for one, third in zip("qkv", np.split(value, 3), strict=True):
          yield (
            f"encoder.layers.{layer}.self_attn.{one}_proj.{kind.removeprefix('in_proj_')}",
            third,
          )
      else:
        yield f"encoder.layers.{layer}.{_BLOCKS.get(part, part)}.{kind}", value
    else:
      yield _TOP.get(name, name), value


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
  """transformers' CLIPModel."""

  text: clip.Text
  vision: clip.Vision
  params: Mapping[str, Any]  # text, vision
  words: tokenizer.Tokenizer
  identity: str

  def of_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N P"]:
    """Vectors of length 1."""
    ids = jnp.asarray(self.words.encode(texts).ids)
    return unit(np.asarray(jax.jit(self.text.embed)(self.params["text"], ids)))

  def of_images(self, images: Float[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N P"]:
    """Vectors of length 1 of normalised images of the tower's size."""
    return unit(np.asarray(jax.jit(self.vision.embed)(self.params["vision"], jnp.asarray(images))))


def unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@functools.lru_cache(maxsize=1)
def folder(path: str) -> Folder:
  """The model in a folder.

  Raises:
    ValueError: none is there, or it is damaged, or no CLIP.
  """
  root = pathlib.Path(path).expanduser()
  if not path or not (root / layout.CONFIG).is_file():
    raise ValueError(
      f"the CLIP score needs a folder of transformers' CLIPModel and {FOLDER_FIELD} is {path!r}; "
      f"fetch {EXAMPLE} from the Hub (its SHA-256 stands there) and set it to that folder"
    )
  config = layout.read_json(root / layout.CONFIG)
  words = tokenizer.load(root)
  common = {"projection_dim": config.get("projection_dim", 512)}
  text = clip.Text(**_fields(config, "text", _TEXT), **common, end=words.id_of(tokenizer.END))
  vision = clip.Vision(**_fields(config, "vision", _VISION), **common)
  file = root / layout.NAMED
  if not file.is_file():
    raise ValueError(f"{file} is not there; fetch it with the rest of the model")
  state = weights.read(file)
  params = {
    "text": _tower(state, "text", text),
    "vision": _tower(state, "vision", vision),
  }
  return Folder(text, vision, params, words, weights.identity(file))


def vision(root: pathlib.Path) -> tuple[clip.Vision, Any]:
  """The tower of pictures and its parameters, with the projection where the files have one.

  Raises:
    ValueError: no such tower there, or a damaged file.
  """
  state = layout.state(root, "text_encoder")  # of transformers' file names
  if not any(name.startswith(_PREFIXES["vision"]) for name in state):
    raise ValueError(f"{root} has no weights of a CLIP vision tower; give the folder of one")
  config = layout.read_json(pathlib.Path(root) / layout.CONFIG)
  width = state[_PROJECTION].shape[0] if _PROJECTION in state else 0
  net = clip.Vision(**_fields(config, "vision", _VISION), projection_dim=width)
  return net, _tower(state, "vision", net)


_PREFIXES = {"text": ("text_model.", "text_proj"), "vision": ("vision_model.", "visual_proj")}
_PROJECTION = "visual_projection.weight"
_TOWER = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT = {  # the defaults of transformers, where config.json leaves a field out
  **dict(zip(_TOWER, (512, 2048, 12, 8), strict=True)),
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "vocab_size": 49408,
  "max_position_embeddings": 77,
}
_VISION = {
  **dict(zip(_TOWER, (768, 3072, 12, 12), strict=True)),
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "image_size": 224,
  "patch_size": 32,
}


def _fields(config: Mapping[str, Any], part: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
  """Those of one tower; a config without towers is that of one."""
  both = {**(config.get(f"{part}_config_dict") or {}), **(config.get(f"{part}_config") or {})}
  own = both or config
  return {name: own.get(name, value) for name, value in defaults.items()}


def _tower(state: Mapping[str, np.ndarray], part: str, net: Any) -> Any:
  """The parameters of one tower, with its projection."""
  mine = {
    name.removeprefix(_PREFIXES[part][0]): value
    for name, value in state.items()
    if name.startswith(_PREFIXES[part]) and not name.endswith("position_ids")
  }
  return pretrained.from_state_dict(mine, jax.eval_shape(net.init, jax.random.key(0)))
