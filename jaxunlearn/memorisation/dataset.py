"""The pictures of a prompt as data that a deletion reads: X\\A to keep, A to forget.

images/, metadata.jsonl in it    config.data: source `captions`, path=images
forget.txt                       config.forget.file: the memorised ones
prompts.txt                      config.data.prompts: what else to ask for, the original prompt
kmeans.npz                       config.eval.memorised_file
reference.png, sheet.png         to look at: the memorised picture; all, the memorised first
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxunlearn import data
from jaxunlearn.data import captions
from jaxunlearn.memorisation import clusters, drawing
from jaxunlearn.memorisation.split import Split
from jaxunlearn.reports import pictures, writer

FORGET, PROMPTS, CLUSTERS = "forget.txt", "prompts.txt", "kmeans.npz"
REFERENCE, SHEET = "reference.png", "sheet.png"
THUMBNAIL, BAND = 96, 12  # pixels: a side of a picture on the sheet, and between its two parts


def write(
  folder: pathlib.Path,
  images: UInt8[np.ndarray, "N H W C"],
  prompt: str,
  others: Sequence[str],
  split: Split,
  found: clusters.Clusters,
) -> None:
  """Writes all of it; a split into nothing and everything has no forget.txt."""
  names = [drawing.name_of(i) for i in range(len(images))]
  captioned = [json.dumps({captions.NAME: name, "text": prompt}) for name in names]
  forget = [name for name, gone in zip(names, split.memorised, strict=True) if gone]
  texts = {
    f"{drawing.IMAGES}/{captions.LISTS[0]}": captioned,
    FORGET: forget if 0 < len(forget) < len(names) else [],
    PROMPTS: list(others),
  }
  for name, lines in texts.items():
    if lines:
      writer.replace(folder / name, "\n".join(lines) + "\n")
    else:
      (folder / name).unlink(missing_ok=True)
  clusters.write(folder / CLUSTERS, found)
  clusters.write_labels(folder, names, split.memorised, split.reference)
  Image.open(folder / drawing.IMAGES / names[split.reference]).save(folder / REFERENCE)
  Image.fromarray(sheet(images, split.memorised)).save(folder / SHEET)


def sheet(
  images: UInt8[np.ndarray, "N H W C"], memorised: np.ndarray
) -> UInt8[np.ndarray, "rows cols 3"]:
  """The memorised ones, a white band, and the others; each as small as a thumbnail."""
  small = data.to_model(np.stack([_thumbnail(image) for image in images]))
  columns = 2 * pictures.COLUMNS
  parts = [small[memorised], small[~memorised]]
  grids = [pictures.grid(_filled(part, columns), columns, 1) for part in parts if len(part)]
  band = np.full((BAND, grids[0].shape[1], 3), 255, np.uint8)
  return np.concatenate([grids[0], *(x for g in grids[1:] for x in (band, g))])


def _filled(part: np.ndarray, columns: int) -> np.ndarray:
  """With white pictures to the end of the row."""
  white = np.ones((-len(part) % columns, *part.shape[1:]), np.float32)
  return np.concatenate([part, white])


def _thumbnail(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w 3"]:
  whole = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)))
  whole.thumbnail((THUMBNAIL, THUMBNAIL))
  return np.asarray(whole)
