"""CLIP score: how well a sample fits the prompt that it was asked for (Hessel et al., EMNLP 2021).

    score = 100 max(cos(f(x), g(prompt)), 0)

f and g are the towers of the CLIP in the folder config.eval.clip_weights, in transformers' layout;
the paper's is openai/clip-vit-large-patch14. The picture's short side is resized to the tower's
size (bicubic), and its centre is cut out. By _original or _kept at the end as `evals.Task.groups`
has it.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxunlearn import data, evals
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import statistics
from jaxunlearn.weights import clip_files

BATCH = 16


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`clip_score`, the mean over each group of samples; a model without conditions has none."""
  del eps_fn  # the samples are made from it
  if task.c is None:
    return {}
  model = clip_files.folder(task.options.clip_weights)
  rows, place = np.unique(task.c.reshape(len(task.c), -1), axis=0, return_inverse=True)
  texts = [task.prompt(row) for row in rows]
  scores = of_pairs(model, np.asarray(task.samples), texts, place.reshape(-1))
  values = {}
  for end, mask in task.groups.items():
    n, interval = int(mask.sum()), statistics.mean_interval(scores[mask])
    identity = f"asked={n} extractor={model.identity} {task.samples_identity}"
    values[f"clip_score{end}"] = evals.Value(float(scores[mask].mean()), interval, identity)
  return values


def check(options: Any) -> None:
  """Raises ValueError where the folder is not there or not readable."""
  clip_files.folder(options.clip_weights)


def of_pairs(
  model: clip_files.Folder,
  images: Float[np.ndarray, "N H W C"],
  texts: list[str],
  place: np.ndarray,
) -> Float[np.ndarray, " N"]:
  """The score of each image in [-1, 1] with the text texts[place]."""
  size = model.vision.image_size
  parts = [prepare(images[i : i + BATCH], size) for i in range(0, len(images), BATCH)]
  vectors = np.concatenate([model.of_images(part) for part in parts])
  cosine = np.sum(vectors * model.of_texts(texts)[place], axis=1)
  return 100 * np.maximum(cosine.astype(np.float64), 0)


def prepare(images: Float[np.ndarray, "N H W C"], size: int) -> Float[np.ndarray, "N s s 3"]:
  """Resized, cut and normalised, as CLIP's own transform does it."""
  pixels = data.to_pixels(np.broadcast_to(images, (*images.shape[:-1], 3)))
  cut = np.stack([_cut(Image.fromarray(one), size) for one in pixels])
  return (cut.astype(np.float32) / 255 - clip_files.MEAN) / clip_files.STD


def _cut(picture: Image.Image, size: int) -> np.ndarray:
  width, height = picture.size
  short = min(width, height)
  wide, high = (size * side // short for side in (width, height))
  resized = picture.resize((wide, high), Image.Resampling.BICUBIC)
  left, top = (wide - size) // 2, (high - size) // 2
  return np.asarray(resized.crop((left, top, left + size, top + size)))
