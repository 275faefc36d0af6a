"""What each embedded classifier tells apart, and how it is trained: classifiers.py does it.

Right on held-out pictures: digits 98.7% of 1,500; fashion 88.4% of 1,000; emoji, whose groups go by
meaning more than by looks, 72.6% of 380, or 65.8% in the mean over classes (people 97%, activities
only 11%). Of both digits and clothes 92.7% of 2,000; of emoji at 16 px, five groups 85.4% and the
two styles, which small pictures hardly show, 84.2% of 240. Of emoji at 64 px, six styles 96.5% of
258. The `decoded_` ones see what a latent model can show: they train on pictures as they are and as
its autoencoder gives them back. Of those, eight kinds 93.8% (ground transport, which has signs and
pumps besides its vehicles, 69%; no other less than 96%) and six styles 95.7% of 258; noto and
twemoji, of all groups, 92.9% of 380.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn import data
from jaxunlearn.data import emoji_styles, fashion
from jaxunlearn.models.classifier import Classifier
from jaxunlearn.weights import stable_diffusion

BATCH = 256  # pictures at once
# The groups of emoji that look alike within, and that have enough pictures.
EMOJI_GROUPS = ("Animals & Nature", "Flags", "People & Body", "Smileys & Emotion", "Symbols")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a classifier tells apart, and how it is trained."""

  name: str  # in config.eval.classifier
  source: str  # of data
  fields: Mapping[str, Any]  # of that source
  shape: tuple[int, int, int]  # of an image: H, W, C
  classes: tuple[str, ...]
  weights: pathlib.Path
  net: Classifier
  epochs: int
  background: float  # what comes in where an image is shifted: -1 is black, 1 white
  by: str = "label"  # what it tells apart, or style
  shift: int = 2  # pixels, the largest random shift
  flip: bool = False  # left and right, one time in two
  decoder: str = ""  # a model: its autoencoder's version of each picture is trained on too

  def records(self) -> tuple[data.Records, data.Records]:
    """(training, held-out) records, labelled by place in `classes`."""
    train, heldout = data.load(self.source, **self.fields)
    return self._labelled(train), self._labelled(heldout)

  def decoded(self, records: data.Records) -> data.Records:
    """The same records as the autoencoder gives them back, under ids of their own."""
    codec = stable_diffusion.read_codec(self.decoder, BATCH)
    images = codec.decode(codec.encode(data.to_model(np.asarray(records.image))))
    ids = np.char.add(records.ids, "#decoded")
    return dataclasses.replace(records, ids=ids, image=data.to_pixels(images))

  def _labelled(self, records: data.Records) -> data.Records:
    names, values = records.vocabulary[0], records.label
    if self.by == "style":
      names, values = records.vocabulary[1], records.conditions[:, 1]
    place = {name: i for i, name in enumerate(self.classes)}
    label = np.array([place[names[i]] for i in values], np.int32)
    return data.Records(records.ids, records.image, label, self.classes)


RECIPES = {
  recipe.name: recipe
  for recipe in (
    Recipe(
      name="digits",
      source="mnist_tshirt",
      fields={"share": 0.0},
      shape=(28, 28, 1),
      classes=tuple("0123456789"),
      weights=data.ASSETS / "digit_classifier.safetensors",
      net=Classifier(),
      epochs=40,
      background=-1.0,
    ),
    Recipe(
      name="fashion",
      source="fashion",
      fields={},
      shape=(28, 28, 1),
      classes=fashion.CLASSES,
      weights=data.ASSETS / "fashion_classifier.safetensors",
      net=Classifier(widths=(32, 64, 96)),
      epochs=40,
      background=-1.0,
      flip=True,
    ),
    Recipe(
      name="digits_clothes",
      source="digits_clothes",
      fields={},
      shape=(28, 28, 1),
      classes=(*"0123456789", *fashion.CLASSES),
      weights=data.ASSETS / "digits_clothes_classifier.safetensors",
      net=Classifier(classes=20, widths=(32, 64, 96)),
      epochs=20,
      background=-1.0,
    ),
    Recipe(
      name="emoji",
      source="emoji",
      fields={},
      shape=(32, 32, 3),
      classes=(
        "Activities",
        "Animals & Nature",
        "Flags",
        "Food & Drink",
        "Objects",
        "People & Body",
        "Smileys & Emotion",
        "Symbols",
        "Travel & Places",
      ),
      weights=data.ASSETS / "emoji_classifier.safetensors",
      net=Classifier(classes=9, widths=(24, 48, 96, 128), dropout=0.5),
      epochs=50,
      background=1.0,
      flip=True,
    ),
    Recipe(
      name="emoji_groups",
      source="emoji",
      fields={"groups": EMOJI_GROUPS, "size": 16},
      shape=(16, 16, 3),
      classes=EMOJI_GROUPS,
      weights=data.ASSETS / "emoji_groups_classifier.safetensors",
      net=Classifier(classes=len(EMOJI_GROUPS), widths=(32, 64, 96), dropout=0.5),
      epochs=40,
      background=1.0,
      flip=True,
    ),
    Recipe(
      name="emoji_styles",
      source="emoji",
      fields={"groups": EMOJI_GROUPS, "size": 16},
      shape=(16, 16, 3),
      classes=("noto", "twemoji"),
      weights=data.ASSETS / "emoji_styles_classifier.safetensors",
      net=Classifier(classes=2, widths=(32, 64, 96), dropout=0.5),
      epochs=40,
      background=1.0,
      flip=True,
      by="style",
    ),
    Recipe(
      name="little_styles",
      source="emoji_styles",
      fields={"stone": 4},
      shape=(64, 64, 3),
      classes=emoji_styles.Source().styles,
      weights=data.ASSETS / "little_styles_classifier.safetensors",
      net=Classifier(classes=6, widths=(16, 32, 48, 64), dropout=0.5),
      epochs=200,
      background=1.0,
      flip=True,
      by="style",
    ),
    Recipe(
      name="decoded_noto_twemoji",
      source="emoji",
      fields={"size": 64},
      shape=(64, 64, 3),
      classes=emoji_styles.DRAWN,
      weights=data.ASSETS / "decoded_noto_twemoji_classifier.safetensors",
      net=Classifier(classes=2, widths=(16, 32, 48, 64), dropout=0.5),
      epochs=30,
      background=1.0,
      flip=True,
      by="style",
      decoder="assets:little_sd",
    ),
    Recipe(
      name="decoded_objects",
      source="emoji_styles",
      fields={},
      shape=(64, 64, 3),
      classes=emoji_styles.KINDS,
      weights=data.ASSETS / "decoded_objects_classifier.safetensors",
      net=Classifier(classes=8, widths=(24, 48, 96, 128), shrink=2, dropout=0.5),
      epochs=60,
      background=1.0,
      flip=True,
      decoder="assets:little_sd",
    ),
    Recipe(
      name="decoded_styles",
      source="emoji_styles",
      fields={},
      shape=(64, 64, 3),
      classes=emoji_styles.Source().styles,
      weights=data.ASSETS / "decoded_styles_classifier.safetensors",
      net=Classifier(classes=6, widths=(16, 32, 48, 64), dropout=0.5),
      epochs=100,
      background=1.0,
      flip=True,
      by="style",
      decoder="assets:little_sd",
    ),
  )
}
