"""Fashion-MNIST: the first 1,000 training images of each of its ten classes, 28 px, grey."""

import dataclasses

import numpy as np

from jaxunlearn import data
from jaxunlearn.inputs import ranges

CLASSES = (
  "T-shirt",
  "Trouser",
  "Pullover",
  "Dress",
  "Coat",
  "Sandal",
  "Shirt",
  "Sneaker",
  "Bag",
  "Ankle boot",
)


@dataclasses.dataclass(frozen=True)
class Source:
  heldout: ranges.OneIn = 10  # one image in this many of each class is held out

  def load(self) -> tuple[data.Records, data.Records]:
    with np.load(data.ASSETS / "fashion.npz") as npz:
      image, label = npz["image"], npz["label"].astype(np.int32)
    records = data.Records(
      ids=np.array([f"fashion/{i:05d}" for i in range(len(image))]),
      image=image[..., None],
      label=label,
      classes=CLASSES,
    )
    order = np.argsort(label, kind="stable")
    place = np.empty(len(label), int)  # of an image among those of its class
    place[order] = np.arange(len(label)) - np.searchsorted(label[order], label[order])
    mine = place % self.heldout == self.heldout - 1
    return records.take(np.flatnonzero(~mine)), records.take(np.flatnonzero(mine))
