"""UnlearnCanvas's classifiers of 51 styles and 20 objects, by a file of their weights.

They are timm's vit_large_patch16_224, fine-tuned on the benchmark's pictures (Zhang et al., 2024):
pictures are resized to 224 px (Pillow, bilinear) and mapped to [-1, 1]. A file is told by its path
in config.eval.classifier or style_classifier, and whether it is of styles or objects by the number
of its classes, which are in the order of the benchmark's lists. The style classifier knows the
benchmark's pictures alone.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float
from PIL import Image

from jaxunlearn import data, weights
from jaxunlearn.evals import judge
from jaxunlearn.models.vit import Vit

_OBJECTS = (
  "Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish "
  "Rabbits Sandwiches Sea Statues Towers Trees Waterfalls"
)
_STYLES = (
  "Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy "
  "Comic_Etch Crayon Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French "
  "Glowing_Sunset Gorgeous_Love Greenfield Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube "
  "Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel Pencil_Drawing Picasso "
  "Pop_Art Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism Superstring Surrealism "
  "Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter"
)
OBJECTS, STYLES = tuple(_OBJECTS.split()), tuple(_STYLES.split())
BATCH = 16
HEAD = 64  # channels of a head, in every ViT of timm


class Recipe(NamedTuple):
  """What is known of a classifier."""

  name: str
  classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Classifier(judge.Judge):
  """A ViT with its weights, as classifiers.Trained. Images are [N, H, W, 3] in [-1, 1]."""

  recipe: Recipe
  net: Vit
  params: Any
  identity: str

  def features(self, images: Float[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N D"]:
    """The state of the class token, float32."""
    return self._forward(images)[1]

  def _forward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = max(1, -(-len(images) // BATCH))
    parts = []
    for part in np.array_split(images, count):
      padded = np.zeros((BATCH, self.net.size, self.net.size, 3), np.float32)
      padded[: len(part)] = resized(part, self.net.size)
      logits, features = _apply(self.net, self.params, padded)
      parts.append((np.asarray(logits)[: len(part)], np.asarray(features)[: len(part)]))
    logits, features = (np.concatenate(each) for each in zip(*parts, strict=True))
    return logits, features


def resized(images: Float[np.ndarray, "N H W 3"], size: int) -> Float[np.ndarray, "N h w 3"]:
  """Images in [-1, 1] as 8 bits, resized by Pillow, in [-1, 1]."""
  one = lambda pixels: np.asarray(
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
  )
  made = [one(pixels) for pixels in data.to_pixels(images)]
  return data.to_model(np.array(made, np.uint8).reshape(-1, size, size, 3))


@functools.partial(jax.jit, static_argnums=0)
def _apply(net: Vit, params: Any, images: Array) -> tuple[Array, Array]:
  return net.apply(params, images)


@functools.cache
def load(path: str) -> Classifier:
  """The classifier in a file; raises ValueError where it is none."""
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise ValueError(
      f"no classifier in {file}; name a file with the benchmark's classifier (its "
      "`model_state_dict` alone, as .safetensors), or one of this project by its name"
    )
  state = weights.read(file)
  net = network(state, file)
  params = to_params(state, net, file)
  known = {len(OBJECTS): OBJECTS, len(STYLES): STYLES}
  if net.classes not in known:
    raise ValueError(
      f"{file} tells {net.classes} classes apart; the benchmark's have {len(STYLES)} styles or "
      f"{len(OBJECTS)} objects"
    )
  return Classifier(Recipe(file.stem, known[net.classes]), net, params, weights.identity(file))


def network(state: Mapping[str, np.ndarray], file: pathlib.Path) -> Vit:
  """What the shapes of the weights say."""
  try:
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    places = state["pos_embed"].shape[1] - 1
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    classes = len(state["head.bias"])
  except (KeyError, ValueError, IndexError) as error:
    raise ValueError(f"{file} holds no ViT of timm's ({error}); give its state dict") from error
  return Vit(classes, round(places**0.5) * patch, patch, width, depth, max(width // HEAD, 1))


def to_params(state: Mapping[str, np.ndarray], net: Vit, file: pathlib.Path) -> Any:
  """The parameters of timm's state dict; raises ValueError where one is missing or left over."""
  found = {_name(name, value): _value(value) for name, value in state.items()}
  shapes = traverse_util.flatten_dict(jax.eval_shape(net.init, jax.random.key(0)), sep="/")
  want = {name: leaf.shape for name, leaf in shapes.items()}
  have = {name: value.shape for name, value in found.items()}
  if wrong := have.items() ^ want.items():
    raise ValueError(f"{file}: {min(wrong)[0]} is missing, left over or of another shape")
  return traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in found.items()}, sep="/")


def _name(name: str, value: np.ndarray) -> str:
  """`blocks.3.norm1.weight` -> `blocks_3/norm1/scale`."""
  name = re.sub(r"^(blocks|patch_embed)\.", r"\1_", name)
  return re.sub("weight$", "scale" if value.ndim == 1 else "kernel", name).replace(".", "/")


def _value(value: np.ndarray) -> np.ndarray:
  """In Flax's order: HWIO of a convolution, IO of a linear layer."""
  axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim)
  return np.ascontiguousarray(value.transpose(axes) if axes else value, np.float32)
