"""Digits, and one T-shirt (Fashion-MNIST, training image 1) repeated to a share of the set.

Alberti et al. (2025), section 5.2: 606 copies in 60,606 images, 1.0%. The embedded digits are
10,000 of MNIST's 70,000.
"""

import dataclasses

import numpy as np

from jaxunlearn import data
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Source:
  digits: ranges.Count = 8500  # training digits, the first ones; the rest are held out
  share: ranges.Under1 = 0.03  # of the training set that is copies of the T-shirt

  def load(self) -> tuple[data.Records, data.Records]:
    with np.load(data.ASSETS / "digits.npz") as npz:
      return with_tshirt(npz["image"], npz["label"], npz["tshirt"], self.digits, self.share)


def with_tshirt(
  image: np.ndarray, label: np.ndarray, tshirt: np.ndarray, digits: int, share: float
) -> tuple[data.Records, data.Records]:
  """The first `digits` images and copies of the T-shirt to a share; the other images held out."""
  if digits > len(image):
    raise ValueError(f"digits {digits} of {len(image)} images; use 1 to {len(image)}")
  records = data.Records(
    ids=np.array([f"mnist/{i:05d}" for i in range(len(image))]),
    image=image[..., None],
    label=label.astype(np.int32),
    classes=tuple(str(d) for d in range(10)),
  )
  copies = round(digits * share / (1 - share))
  shirts = data.Records(
    ids=np.array([f"tshirt/{i:05d}" for i in range(copies)], dtype=str),
    image=np.repeat(tshirt[None, ..., None], copies, axis=0),
    label=np.zeros(copies, np.int32),
    classes=("tshirt",),
  )
  train = records.take(np.arange(digits))
  return data.concatenate([train, shirts]), records.take(np.arange(digits, len(image)))
