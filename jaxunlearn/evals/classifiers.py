"""The small classifiers behind the inception score, the feature FID and the quality per class.

Their weights are embedded; this command made them (minutes on one CPU core, half an hour for the
largest), training on the pictures that the generative models train on and testing on the ones they
hold out:

    python -m jaxunlearn.evals.classifiers --set=emoji  # or another of RECIPES

How often each is right on held-out pictures stands in recipes.py.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Array, Float
from tqdm import trange

from jaxunlearn import data, errors, streams, weights
from jaxunlearn.evals import canvas, judge
from jaxunlearn.evals.recipes import BATCH, RECIPES, Recipe
from jaxunlearn.models.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Trained(judge.Judge):
  """A classifier with its weights. Images are [N, H, W, C] in [-1, 1]; N may be 0.

  Those of a whole multiple of the recipe's size are made smaller, by the mean of each block. Those
  of another size or number of channels raise ValueError.
  """

  recipe: Recipe
  params: Any
  identity: str  # name and the first digits of the sha256 of the weights' file
  facts: dict[str, str]  # how it was trained, and its accuracy on held-out pictures

  def features(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N 64"]:
    """The activations of the penultimate layer, float32."""
    return self._forward(images)[1]

  def _forward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = shrunk(images, self.recipe.shape)
    _check_shape(self.recipe, images.shape[1:])
    count = max(1, -(-len(images) // BATCH))
    padded = np.zeros((count * BATCH, *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    parts = [_apply(self.recipe.net, self.params, part) for part in np.split(padded, count)]
    logits, features = (np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))
    return logits, features


def shrunk(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
  """Pictures of a whole multiple of the shape's sides as the mean of each block of pixels."""
  n, h, w, c = images.shape
  k = h // shape[0]
  if k < 2 or (h, w) != (k * shape[0], k * shape[1]):
    return images
  return np.asarray(images).reshape(n, shape[0], k, shape[1], k, c).mean(axis=(2, 4))


def _check_shape(recipe: Recipe, shape: tuple[int, ...]) -> None:
  if shape != recipe.shape:
    size = lambda shape: "x".join(map(str, shape))
    known = ", ".join(f"{name} {size(r.shape)}" for name, r in RECIPES.items())
    raise ValueError(
      f"config.eval.classifier={recipe.name} takes {size(recipe.shape)} images and these are "
      f"{size(shape)}; name one that takes them ({known}), or leave the metrics that classify out "
      "of config.eval.metrics"
    )


@functools.partial(jax.jit, static_argnums=0)
def _apply(net: Classifier, params: Any, images: Array) -> Any:
  return net.apply({"params": params}, images)


def check(options: Any) -> None:
  """Raises ValueError where no classifier has a name in config.eval."""
  load(options.classifier)
  if options.style_classifier:
    load(options.style_classifier)


def of_column(options: Any, column: int) -> Any:
  """The classifier of a condition: 0 the class, 1 the style."""
  if column and not options.style_classifier:
    raise ValueError(
      "config.eval.style_classifier is empty and this run has styles; name one of: "
      f"{', '.join(RECIPES)}"
    )
  return load(options.style_classifier if column else options.classifier)


@functools.cache
def load(name: str) -> Any:
  """The embedded classifier of that name, or UnlearnCanvas's in a file.

  Raises:
    ValueError: there is none; the names are listed.
  """
  if "/" in name or name.endswith((".safetensors", *weights.PICKLED)):
    return canvas.load(name)
  errors.check_choice("classifier", name, RECIPES)
  recipe = RECIPES[name]
  if not recipe.weights.is_file():
    raise ValueError(
      f"the classifier {name} has no weights in {recipe.weights}; train it: python -m "
      f"jaxunlearn.evals.classifiers --set={name}"
    )
  with safetensors.safe_open(recipe.weights, "numpy") as file:
    facts = file.metadata()
  params = traverse_util.unflatten_dict(safetensors.numpy.load_file(recipe.weights), sep=".")
  return Trained(recipe, params, weights.identity(recipe.weights), facts)


def train(recipe: Recipe, records: data.Records, seed: int) -> Any:
  """The parameters after Adam on the cross-entropy of augmented images, cosine to 0."""
  k_init, k_steps = jax.random.split(jax.random.key(seed))
  params = recipe.net.init(k_init, jnp.zeros((1, *recipe.shape)))["params"]
  steps = recipe.epochs * (len(records) // BATCH)
  tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
  stream = streams.Stream(records, np.arange(len(records)), BATCH, (seed,), conditional=True)

  def loss(params: Any, images: Array, labels: Array, rng: Array) -> Array:
    logits, _ = recipe.net.apply({"params": params}, images, train=True, rngs={"dropout": rng})
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def update(params: Any, opt: Any, images: Array, labels: Array, rng: Array) -> Any:
    k_shift, k_drop, k_flip = jax.random.split(rng, 3)
    images = shifted(images, recipe.shift, recipe.background, k_shift)
    images = flipped(images, k_flip) if recipe.flip else images
    value, grads = jax.value_and_grad(loss)(params, images, labels, k_drop)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), opt, value

  opt = tx.init(params)
  for step in (bar := trange(steps, desc=f"{recipe.name} classifier")):
    rows = stream.at(step)
    rng = jax.random.fold_in(k_steps, step)
    params, opt, value = update(params, opt, rows.image, rows.c, rng)
    bar.set_postfix(loss=f"{value:.4f}", refresh=False)
  return params


def shifted(images: Float[Array, "N H W C"], most: int, fill: float, rng: Array) -> Array:
  """Each image moved by up to `most` pixels in each direction, the value `fill` coming in."""
  pad = ((0, 0), (most, most), (most, most), (0, 0))
  start = jax.random.randint(rng, (len(images), 2), 0, 2 * most + 1)
  crop = lambda x, ij: jax.lax.dynamic_slice(x, (*ij, 0), images.shape[1:])
  return jax.vmap(crop)(jnp.pad(images, pad, constant_values=fill), start)


def flipped(images: Float[Array, "N H W C"], rng: Array) -> Array:
  """One image in two mirrored, left for right."""
  turn = jax.random.bernoulli(rng, shape=(len(images), 1, 1, 1))
  return jnp.where(turn, images[:, :, ::-1], images)


def recalls(trained: Trained, records: data.Records) -> tuple[float, Float[np.ndarray, " K"]]:
  """The share of records whose likeliest class is their label: of all, and of each class."""
  parts = [trained.probabilities(data.to_model(part)) for part in records.chunks(BATCH)]
  right = np.concatenate(parts).argmax(axis=1) == records.label
  of_classes = [right[records.label == k].mean() for k in np.unique(records.label)]
  return float(right.mean()), np.array(of_classes)


def make(recipe: Recipe, out: pathlib.Path, seed: int) -> str:
  """Trains, tests on the held-out pictures and writes the weights' file; says how it went."""
  records, heldout = recipe.records()
  shown = [records, recipe.decoded(records)] if recipe.decoder else [records]
  params = train(recipe, data.concatenate(shown), seed)
  trained = Trained(recipe, params, "", {})
  score, of_classes = recalls(trained, heldout)
  facts = {
    "accuracy": f"{score:.4f}",
    "class_accuracy": f"{of_classes.mean():.4f}",
    "classes": json.dumps(recipe.classes),
    "heldout": str(len(heldout)),
    "epochs": str(recipe.epochs),
    "seed": str(seed),
  }
  if recipe.decoder:
    facts["decoded_accuracy"] = f"{recalls(trained, recipe.decoded(heldout))[0]:.4f}"
  flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep=".").items()}
  safetensors.numpy.save_file(flat, out, metadata=facts)
  by_class = f"{of_classes.mean():.2%} by class"
  decoded = f", decoded {float(facts['decoded_accuracy']):.2%}" if recipe.decoder else ""
  return f"{out}: {score:.2%} of {len(heldout)} held-out pictures, {by_class}{decoded}"


def main() -> None:
  parser = argparse.ArgumentParser(description="Train a classifier for the metrics.")
  parser.add_argument("--set", choices=RECIPES, required=True)
  parser.add_argument("--out", type=pathlib.Path, help="a safetensors file, or the embedded one")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  print(make(RECIPES[args.set], args.out or RECIPES[args.set].weights, args.seed))


if __name__ == "__main__":
  main()
