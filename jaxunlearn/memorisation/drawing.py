"""n pictures of a prompt with their scores, in a folder that a stopped launch goes on filling.

images/000.png ...    the pictures, by DDIM under guidance; each from a noise of its own number
scores.jsonl          a line each: text_noise, text_noise_first (Wen et al.), one_step (Webster)
asked.json            how they were drawn: another launch has to ask for the same
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxunlearn import data, evals
from jaxunlearn.data import captions
from jaxunlearn.diffusion import Diffusion, EpsFn, guidance, sampling
from jaxunlearn.evals import one_step, statistics, text_noise
from jaxunlearn.inputs import ranges
from jaxunlearn.reports import writer

IMAGES, SCORES, ASKED = "images", "scores.jsonl", "asked.json"
SHOWN = ("text_noise", "text_noise_first", "one_step")


@dataclasses.dataclass(frozen=True)
class How:
  """How pictures are drawn; what changes a picture, but for the model."""

  steps: ranges.Count = 50
  scale: float = 7.5  # s in eps_null + s (eps_c - eps_null)
  seed: ranges.Seed = 0
  batch: ranges.Count = 8  # at a time: changes nothing

  def __post_init__(self) -> None:
    ranges.check(self)


@dataclasses.dataclass(frozen=True)
class Model:
  """What is drawn from; commands/sample.py finds it."""

  eps_fn: EpsFn  # before guidance, of prompts by number
  process: Diffusion
  options: sampling.Options
  shape: tuple[int, ...]  # of what the network sees
  decode: Any
  identity: str


def identity(origin: str, params: Any) -> str:
  """`ORIGIN:HASH`, the hash of the first numbers of every parameter."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.asarray(leaf).ravel()[:256].astype(np.float32).tobytes())
  return f"{origin}:{digest.hexdigest()[:12]}"


def claim(folder: pathlib.Path, model: Model, prompt: str, how: How) -> None:
  """Says how the folder's pictures are drawn; raises ValueError where they were drawn otherwise."""
  asked = {"model": model.identity, "prompt": prompt, **dataclasses.asdict(how)}
  del asked["batch"]
  path = folder / ASKED
  if path.is_file():
    old = json.loads(path.read_text(encoding="utf-8"))
    if apart := [name for name in asked if old.get(name) != asked[name]]:
      name = apart[0]
      raise ValueError(
        f"the pictures in {folder} were drawn with {name} {old.get(name)!r} and {asked[name]!r} is "
        "asked for now; give another --out, or delete that folder"
      )
    return
  folder.mkdir(parents=True, exist_ok=True)
  writer.replace(path, json.dumps(asked, indent=1) + "\n")


def missing(folder: pathlib.Path, n: int) -> list[int]:
  """The numbers of the pictures that are not there yet, with their scores."""
  there = {name for name in scores(folder) if (folder / IMAGES / name).is_file()}
  return [i for i in range(n) if name_of(i) not in there]


def scores(folder: pathlib.Path) -> dict[str, Mapping[str, float]]:
  """Picture -> its scores; a line that a killed launch cut short counts for nothing."""
  path = folder / SCORES
  lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
  whole = [json.loads(line) for line in lines if line.endswith("}")]
  return {line.pop(captions.NAME): line for line in whole}


def draw(folder: pathlib.Path, model: Model, row: int, n: int, how: How) -> Iterator[int]:
  """Draws what is missing of n pictures of prompt `row`; gives how many were made, each time."""
  (folder / IMAGES).mkdir(parents=True, exist_ok=True)
  left = missing(folder, n)
  eps_fn = guidance.guided(model.eps_fn, how.scale - 1)
  for start in range(0, len(left), how.batch):
    mine = left[start : start + how.batch]
    full = np.resize(mine, how.batch)  # one shape for all: the last is filled up with its own
    pictures, found = _batch(eps_fn, model, row, full, how)
    lines = []
    for i, picture, line in zip(mine, pictures, found, strict=False):
      Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(
        folder / IMAGES / name_of(i)
      )
      lines.append(json.dumps({captions.NAME: name_of(i), **line}))
    with (folder / SCORES).open("a", encoding="utf-8") as file:
      file.write("\n".join(["", *lines, ""]))
    yield len(mine)


def read(folder: pathlib.Path, n: int) -> UInt8[np.ndarray, "n H W C"]:
  """The first n pictures."""
  pictures = [np.asarray(Image.open(folder / IMAGES / name_of(i))) for i in range(n)]
  return np.stack(pictures).reshape(n, *pictures[0].shape[:2], -1)


def name_of(i: int) -> str:
  return f"{i:03d}.png"


def noise(shape: tuple[int, ...], numbers: np.ndarray, seed: int) -> Float[jax.Array, "N H W C"]:
  """The noise that each picture starts from: of the seed and its number alone."""
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(numbers))
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _batch(
  eps_fn: EpsFn, model: Model, row: int, numbers: np.ndarray, how: How
) -> tuple[UInt8[np.ndarray, "B H W C"], list[dict[str, float]]]:
  x_T = noise(model.shape, numbers, how.seed)
  c = np.full(len(numbers), row, np.int32)
  z, m = text_noise.magnitudes(eps_fn, model.process, x_T, c, how.steps, model.options)
  sure = one_step.score(eps_fn, model.process, x_T, c)
  columns = zip(m.mean(axis=1), m[:, 0], sure, strict=True)
  found = [dict(zip(SHOWN, map(float, row), strict=True)) for row in columns]
  return data.to_pixels(model.decode(z)), found


def mean_scores(folder: pathlib.Path) -> dict[str, evals.Value]:
  """The mean of each score over the pictures of a prompt, with its interval."""
  found = list(scores(folder).values())
  asked = json.loads((folder / ASKED).read_text(encoding="utf-8"))
  facts = {k: asked[k] for k in ("model", "steps", "scale", "seed")}
  how = evals.identity(solver="ddim", n=len(found), **facts)
  values = {name: np.array([line[name] for line in found]) for name in SHOWN}
  return {
    name: evals.Value(float(v.mean()), statistics.mean_interval(v), how)
    for name, v in values.items()
  }
