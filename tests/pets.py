"""Small pictures of three classes in two styles, and classifiers that read a pixel off them."""

import dataclasses

import numpy as np

from jaxunlearn import data
from jaxunlearn.evals import classifiers

CLASSES, STYLES = ("cat", "dog", "fox"), ("photo", "ink")


def records(styled=False, n=60, shape=(4, 4, 1)):
  """Every (class, style) in turn; the pixels of record i are all i."""
  image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, *shape))
  label, style = np.arange(n, dtype=np.int32) % 3, np.arange(n, dtype=np.int32) // 3 % 2
  ids = np.array([f"pet/{i}" for i in range(n)])
  return data.Records(ids, image, label, CLASSES, *((style, STYLES) if styled else ()))


@dataclasses.dataclass(frozen=True)
class PixelClassifier(classifiers.Trained):
  """Sure of class floor(|100 p|), wrapping around, p a channel of the first pixel."""

  channel: int = 0

  def probabilities(self, images):
    place = np.floor(np.abs(100 * images[:, 0, 0, self.channel])).astype(int)
    return np.eye(len(self.recipe.classes))[place % len(self.recipe.classes)]


def classifier(name, classes, channel):
  recipe = dataclasses.replace(classifiers.RECIPES["digits"], name=name, classes=classes)
  return PixelClassifier(recipe, {}, f"{name}:0", {}, channel)


# The order of their classes is not the data's.
SPECIES = classifier("species", ("fox", "cat", "dog"), 0)
LOOKS = classifier("looks", ("ink", "photo"), 1)


def pictures_of(names, looks=None, shape=(2, 2, 2)):
  """Images that SPECIES takes for those names, and LOOKS for those styles."""
  images = np.zeros((len(names), *shape), np.float32)
  images[..., 0, 0, 0] = [(SPECIES.recipe.classes.index(name) + 0.5) / 100 for name in names]
  for i, look in enumerate(looks or ()):
    images[i, 0, 0, 1] = (LOOKS.recipe.classes.index(look) + 0.5) / 100
  return images


def stand_in(monkeypatch):
  """Makes `species` and `looks` names of classifiers."""
  monkeypatch.setattr(classifiers, "load", {"species": SPECIES, "looks": LOOKS}.__getitem__)
