"""Handwritten digits of 64 px in colour channels, dark on white: beside emoji, unrelated pictures.

Each of the embedded digits' pixels is doubled, and a border of 4 white ones is put around.
"""

import dataclasses

import numpy as np

from jaxunlearn import data
from jaxunlearn.data import mnist_tshirt
from jaxunlearn.inputs import ranges

BORDER = 4


@dataclasses.dataclass(frozen=True)
class Source:
  digits: ranges.Count = 2000

  def load(self) -> tuple[data.Records, data.Records]:
    """(training, held-out) records."""
    parts = mnist_tshirt.Source(digits=self.digits, share=0.0).load()
    train, heldout = (
      dataclasses.replace(part, image=enlarged(np.asarray(part.image))) for part in parts
    )
    return train, heldout


def enlarged(image: np.ndarray) -> np.ndarray:
  """uint8 [N, 28, 28, 1], light on black -> [N, 64, 64, 3], dark on white."""
  doubled = 255 - image.repeat(2, axis=1).repeat(2, axis=2)
  border = ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0))
  return np.pad(doubled, border, constant_values=255).repeat(3, axis=-1)
