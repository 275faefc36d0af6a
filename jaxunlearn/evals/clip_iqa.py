"""CLIP-IQA: how good a picture looks, without any reference (Wang et al., AAAI 2023).

    score = softmax(100 [cos(f(x), g("Good photo.")), cos(f(x), g("Bad photo."))])[0]

f is CLIP's RN50 without position embeddings, at the picture's own size, g its text tower: what
torchmetrics calls `clip_iqa` and its pair "quality". Alberti et al. (2025) call a deletion a
success only where the mean over the samples stayed at .35 or more. By _original or _kept at the end
as `evals.Task.groups` has it.

OpenAI's RN50.pt is a TorchScript archive; in Python with torch, once:

    state = torch.jit.load("RN50.pt", map_location="cpu").state_dict()
    arrays = {name: value.float().contiguous() for name, value in state.items()}
    safetensors.torch.save_file(arrays, "RN50.safetensors")
"""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn import evals, weights
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import statistics
from jaxunlearn.weights import clip_files

GOOD, BAD = (886, 1125, 269), (2103, 1125, 269)  # CLIP's tokens of "Good photo.", "Bad photo."
START, END, PLACES = 49406, 49407, 77
SCALE = 100.0
BATCH = 8
LEAST = 32  # pixels a side, under which the network has no position left; enlarged before


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`clip_iqa`, the mean over each group of samples; pictures of one channel are repeated."""
  del eps_fn  # the samples are made from it
  model, extractor = _load(find(task.options.clip_iqa_weights))
  scores = quality(model, np.asarray(task.samples))
  values = {}
  for end, mask in task.groups.items():
    n, interval = int(mask.sum()), statistics.mean_interval(scores[mask])
    identity = f"asked={n} extractor={extractor} pair=quality {task.samples_identity}"
    values[f"clip_iqa{end}"] = evals.Value(float(scores[mask].mean()), interval, identity)
  return values


def check(options: Any) -> None:
  """Raises ValueError where the weights are not there or not readable."""
  _load(find(options.clip_iqa_weights))


def find(path: str) -> pathlib.Path:
  """The file at `path`, or RN50.safetensors in the cache; raises ValueError where it is not."""
  published = clip_files.RN50
  file = pathlib.Path(path).expanduser() if path else published.cached.with_suffix(".safetensors")
  if not file.is_file():
    raise ValueError(
      f"CLIP-IQA needs {file}, which is not there: fetch {published.url} (SHA-256: "
      f"{published.sha256}), make it a .safetensors as evals/clip_iqa.py says, and set "
      f"{published.field} to that"
    )
  return file


def quality(
  model: clip_files.OfResNet, images: Float[np.ndarray, "N H W C"]
) -> Float[np.ndarray, " N"]:
  """The score of each image in [-1, 1]; what lies outside is cut."""
  net, params = model.vision, model.params["vision"]
  parts = [prepare(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
  vectors = np.concatenate([np.asarray(_embed(net, params, part), np.float64) for part in parts])
  logits = SCALE * clip_files.unit(vectors) @ anchors(model).T
  return 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))


def prepare(images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N h w 3"]:
  """As the network takes them."""
  times = -(-LEAST // min(images.shape[1:3]))
  images = images.repeat(times, axis=1).repeat(times, axis=2)
  pixels = np.clip((np.nan_to_num(images, nan=-1) + 1) / 2, 0, 1)
  pixels = np.broadcast_to(pixels, (*pixels.shape[:-1], 3)).astype(np.float32)
  return (pixels - clip_files.MEAN) / clip_files.STD


@functools.partial(jax.jit, static_argnums=0)
def _embed(net: Any, params: Any, images: Float[Array, "N H W 3"]) -> Float[Array, "N P"]:
  with jax.default_matmul_precision("highest"):
    out: Any = net.apply({"params": params}, images)
  return out


@functools.lru_cache(maxsize=1)
def _load(path: pathlib.Path) -> tuple[clip_files.OfResNet, str]:
  return clip_files.openai(weights.read(path)), weights.identity(path)


@functools.lru_cache(maxsize=1)
def anchors(model: clip_files.OfResNet) -> Float[np.ndarray, "2 P"]:
  """The vectors of length 1 of the two texts."""
  ids = np.full((2, PLACES), END, np.int32)
  for row, words in zip(ids, (GOOD, BAD), strict=True):
    row[: len(words) + 1] = (START, *words)
  vectors = jax.jit(model.text.embed)(model.params["text"], ids)
  return clip_files.unit(np.asarray(vectors, np.float64))
