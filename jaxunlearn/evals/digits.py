"""The digit classifier behind the inception score, the feature FID and the quality per class.

Its weights are embedded; this command made them (some minutes on one CPU core), training on the
digits that the generative models train on and testing on the ones they hold out:

    python -m jaxunlearn.evals.digits --out=jaxunlearn/assets/digit_classifier.safetensors
"""

import argparse
import dataclasses
import functools
import hashlib
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

from jaxunlearn import data
from jaxunlearn.models.classifier import Classifier

WEIGHTS = data.ASSETS / "digit_classifier.safetensors"
BATCH = 256
SHIFT = 2  # pixels, of the random shifts while training

_NET = Classifier()


@dataclasses.dataclass(frozen=True)
class Digits:
  """A trained classifier. Images are [N, 28, 28, 1] in [-1, 1]; N may be 0."""

  params: Any
  identity: str  # name and the first digits of the sha256 of the weights' file
  facts: dict[str, str]  # how it was trained, and its accuracy on the held-out digits

  def probabilities(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N 10"]:
    """The class probabilities, float64, each row of sum 1."""
    logits = self._forward(images)[0].astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)

  def features(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N 64"]:
    """The activations of the penultimate layer, float32."""
    return self._forward(images)[1]

  def _forward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = max(1, -(-len(images) // BATCH))
    padded = np.zeros((count * BATCH, *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    parts = [_apply(self.params, part) for part in np.split(padded, count)]
    logits, features = (np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))
    return logits, features


@functools.cache
def load(path: pathlib.Path = WEIGHTS) -> Digits:
  """The classifier whose weights are at `path`."""
  with safetensors.safe_open(path, "numpy") as file:
    facts = file.metadata()
  params = traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep=".")
  digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:12]
  return Digits(params, f"{pathlib.Path(path).stem}:{digest}", facts)


@jax.jit
def _apply(params: Any, images: Array) -> Any:
  return _NET.apply({"params": params}, images)


def train(epochs: int, seed: int, records: data.Records) -> Any:
  """The parameters after Adam on the cross-entropy of randomly shifted digits, cosine to 0."""
  k_init, k_steps = jax.random.split(jax.random.key(seed))
  params = _NET.init(k_init, jnp.zeros((1, *records.image.shape[1:])))["params"]
  steps = epochs * (len(records) // BATCH)
  tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
  stream = data.Stream(records, np.arange(len(records)), BATCH, (seed,), conditional=True)

  def loss(params: Any, images: Array, labels: Array, rng: Array) -> Array:
    logits, _ = _NET.apply({"params": params}, images, train=True, rngs={"dropout": rng})
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def update(params: Any, opt: Any, images: Array, labels: Array, rng: Array) -> Any:
    k_shift, k_drop = jax.random.split(rng)
    value, grads = jax.value_and_grad(loss)(params, shifted(images, k_shift), labels, k_drop)
    updates, opt = tx.update(grads, opt)
    return optax.apply_updates(params, updates), opt, value

  opt = tx.init(params)
  for step in (bar := trange(steps, desc="digit classifier")):
    rows = stream.at(step)
    rng = jax.random.fold_in(k_steps, step)
    params, opt, value = update(params, opt, rows.image, rows.c, rng)
    bar.set_postfix(loss=f"{value:.4f}", refresh=False)
  return params


def shifted(images: Float[Array, "N H W C"], rng: Array) -> Float[Array, "N H W C"]:
  """Each image moved by up to SHIFT pixels in each direction, black (-1) coming in."""
  pad = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
  start = jax.random.randint(rng, (len(images), 2), 0, 2 * SHIFT + 1)
  crop = lambda x, ij: jax.lax.dynamic_slice(x, (*ij, 0), images.shape[1:])
  return jax.vmap(crop)(jnp.pad(images, pad, constant_values=-1.0), start)


def accuracy(digits: Digits, records: data.Records) -> float:
  """The share of the records whose likeliest class is their label."""
  parts = [digits.probabilities(data.to_model(part)) for part in records.chunks(BATCH)]
  found = np.concatenate(parts).argmax(axis=1)
  return float(np.mean(found == records.label))


def main() -> None:
  parser = argparse.ArgumentParser(description="Train the digit classifier.")
  parser.add_argument("--out", type=pathlib.Path, default=WEIGHTS, help="a safetensors file")
  parser.add_argument("--epochs", type=int, default=40)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  records, heldout = data.load("mnist_tshirt", share=0.0)
  params = train(args.epochs, args.seed, records)
  score = accuracy(Digits(params, "", {}), heldout)
  facts = {
    "accuracy": f"{score:.4f}",
    "heldout": str(len(heldout)),
    "epochs": str(args.epochs),
    "seed": str(args.seed),
  }
  flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep=".").items()}
  safetensors.numpy.save_file(flat, args.out, metadata=facts)
  print(f"{args.out}: {score:.2%} of {len(heldout)} held-out digits")


if __name__ == "__main__":
  main()
