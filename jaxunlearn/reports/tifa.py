"""Pictures with their prompts, as the scripts of TIFA (Hu et al., 2023) take them.

    FOLDER/images/0000.png ...
    FOLDER/imgs.json           {"0000": "images/0000.png", ...}
    FOLDER/text_inputs.json    [{"id": "0000", "caption": "a whale"}, ...]

TIFA asks a language model for questions to each caption, and a visual one for the answers: both are
its own, and run where its package is installed.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxunlearn import data
from jaxunlearn.reports import writer


def write(
  folder: pathlib.Path, prompts: Sequence[str], images: Float[np.ndarray, "N H W C"]
) -> None:
  """One picture a prompt: `prompts` has one for each image, in [-1, 1]."""
  inner = folder / "images"
  inner.mkdir(parents=True, exist_ok=True)
  names = [f"{i:04d}" for i in range(len(images))]
  for name, image in zip(names, images, strict=True):
    pixels = data.to_pixels(image)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(inner / f"{name}.png")
  texts = [{"id": n, "caption": text} for n, text in zip(names, prompts, strict=True)]
  places = {name: f"images/{name}.png" for name in names}
  writer.replace(folder / "text_inputs.json", json.dumps(texts, indent=2) + "\n")
  writer.replace(folder / "imgs.json", json.dumps(places, indent=2) + "\n")
