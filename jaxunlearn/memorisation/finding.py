"""One prompt, from its pictures to its data set: draw, vary, split, write.

OUT/NAME/             the pictures and the data set: dataset.py
OUT/NAME/split.json   the share memorised, the scores, the doubts, and how all was made
OUT/NAME/others/0     few pictures of the original prompt, where another one is used
OUT/NAME/others/1 ... and of each variant
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8

from jaxunlearn import data, errors
from jaxunlearn.evals import statistics
from jaxunlearn.inputs import ranges
from jaxunlearn.memorisation import clusters, dataset, drawing, split, variants
from jaxunlearn.memorisation.prompt_list import Entry
from jaxunlearn.reports import writer

OTHERS, REPORT = "others", "split.json"
Describe = Callable[[np.ndarray], np.ndarray]  # images in [-1, 1] -> descriptors of length 1


@dataclasses.dataclass(frozen=True)
class Way:
  """How pictures are split, and how prompts are varied."""

  by: str = "kmeans"
  radius: ranges.AtLeast0 = 0.0  # L2 in [0, 1] pixels; 0: Webster's
  sscd: ranges.Share = 0.5  # the least cosine
  vary: ranges.From0 = 0  # variants of each prompt that has none by hand
  few: Annotated[int, ranges.Range(2, whole=True)] = 16  # pictures of each of those

  def __post_init__(self) -> None:
    errors.check_choice("way to split", self.by, split.WAYS)
    ranges.check(self)


@dataclasses.dataclass(frozen=True)
class Finder:
  """What serves all prompts: the model, the rows of their texts, and how they are split."""

  model: drawing.Model
  rows: Mapping[str, int]
  n: int
  how: drawing.How
  way: Way
  describe: Describe | None  # where the way is sscd
  tick: Callable[[int], Any]  # told of each batch of pictures

  def find(
    self, entry: Entry, folder: pathlib.Path, reference: np.ndarray | None
  ) -> dict[str, Any]:
    """The data set of a prompt in the folder; returns what split.json says.

    Raises:
      ValueError: pictures that were drawn otherwise, a reference of another size, or labels that
        lack a picture.
    """
    texts = others_of(entry, self.way.vary)
    tried: list[dict[str, Any]] = []
    if texts:
      first = self._few(folder, 0, entry.prompt)
      if reference is None:
        reference = first[split.densest(first)]
      for i, (rule, prompt) in enumerate(texts):
        images = first if i == 0 else self._few(folder, i, prompt)
        tried.append(self._tried(folder / OTHERS / str(i), rule, prompt, images, reference))
    chosen = entry.modified or (best(tried) if tried else entry.prompt)
    images = self._drawn(folder, chosen, self.n)
    found, parts = self._split(folder, images, reference)
    dataset.write(folder, images, chosen, [entry.prompt], parts, found)
    report = self._report(folder, entry, chosen, parts, found, tried)
    writer.replace(folder / REPORT, json.dumps(report, indent=1) + "\n")
    return report

  def _drawn(self, folder: pathlib.Path, prompt: str, n: int) -> UInt8[np.ndarray, "n H W C"]:
    drawing.claim(folder, self.model, prompt, self.how)
    for made in drawing.draw(folder, self.model, self.rows[prompt], n, self.how):
      self.tick(made)
    return drawing.read(folder, n)

  def _few(self, folder: pathlib.Path, i: int, prompt: str) -> UInt8[np.ndarray, "n H W C"]:
    return self._drawn(folder / OTHERS / str(i), prompt, self.way.few)

  def _tried(
    self, folder: pathlib.Path, rule: str, prompt: str, images: np.ndarray, reference: np.ndarray
  ) -> dict[str, Any]:
    """The share of a variant's pictures that are the reference, and its scores."""
    hits = self._near(images, reference)
    return {
      "rule": rule,
      "prompt": prompt,
      "share": float(hits.mean()),
      "ci95": statistics.wilson(int(hits.sum()), len(hits)),
      "n": len(hits),
      **_values(folder),
    }

  def _near(self, images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[N] bool: the pictures that are the reference, by SSCD or by the radius."""
    if self.describe:
      prepared = data.to_model(np.concatenate([images, reference[None]]))
      descriptors = self.describe(prepared)
      return descriptors[:-1] @ descriptors[-1] >= self.way.sscd
    return split.distances(images, reference[None])[:, 0] < self._radius(images)

  def _radius(self, images: np.ndarray) -> float:
    return self.way.radius or split.verbatim_radius(images.shape[1:])

  def _split(
    self, folder: pathlib.Path, images: np.ndarray, reference: np.ndarray | None
  ) -> tuple[clusters.Clusters, split.Split]:
    """The two clusters, and which pictures are memorised."""
    like, away = split.densest(images), 0.0
    if reference is not None:
      far = split.distances(images, reference[None])[:, 0]
      like, away = int(np.argmin(far)), float(far.min()) / self._radius(images)
    found = clusters.fit(images, like, self.how.seed)
    if self.way.by == "kmeans":
      memorised = found.are_memorised(images.astype(np.float32))
      return found, dataclasses.replace(split.of(images, memorised, like), away=away)
    if self.way.by == "labels":
      names = [drawing.name_of(i) for i in range(len(images))]
      memorised = clusters.read_labels(folder / clusters.LABELS, names)
    else:
      memorised = self._near(images, images[like] if reference is None else reference)
    if 0 < memorised.sum() < len(images):
      found = clusters.of(images, memorised)
    return found, split.of(images, memorised)

  def _report(
    self,
    folder: pathlib.Path,
    entry: Entry,
    chosen: str,
    parts: split.Split,
    found: clusters.Clusters,
    tried: list[dict[str, Any]],
  ) -> dict[str, Any]:
    """All that is known of a prompt."""
    return {
      "prompt": entry.prompt,
      "asked": chosen,
      "by": self.way.by,
      "n": len(parts.memorised),
      "share": parts.share,
      "ci95": parts.ci95,
      "apart": parts.apart,
      "tight": parts.tight,
      "doubts": parts.doubts,
      "usable": (folder / dataset.FORGET).is_file(),
      "reference": drawing.name_of(parts.reference),
      "clusters": found.identity,
      **_values(folder),
      "others": tried,
    }


def others_of(entry: Entry, vary: int) -> list[variants.Variant]:
  """What else is drawn, few of each: the original, and variants by rule where none is given."""
  if not entry.modified and not vary:
    return []
  original = variants.Variant("the original", entry.prompt)
  return [original] if entry.modified else [original, *variants.variants(entry.prompt, vary)]


def best(tried: list[dict[str, Any]]) -> str:
  """The prompt whose share is nearest to a half; of equals the one that was tried first."""
  return min(tried, key=lambda one: abs(one["share"] - 0.5))["prompt"]


def texts_of(entry: Entry, vary: int) -> list[str]:
  """Every prompt that is drawn for an entry."""
  used = [one.prompt for one in others_of(entry, vary)] or [entry.prompt]
  return [*used, entry.modified] if entry.modified else used


def pictures_of(entry: Entry, folder: pathlib.Path, n: int, way: Way) -> int:
  """How many pictures are still to be drawn."""
  count = len(others_of(entry, way.vary))
  left = [len(drawing.missing(folder / OTHERS / str(i), way.few)) for i in range(count)]
  return len(drawing.missing(folder, n)) + sum(left)


def _values(folder: pathlib.Path) -> dict[str, Any]:
  return {name: value._asdict() for name, value in drawing.mean_scores(folder).items()}
