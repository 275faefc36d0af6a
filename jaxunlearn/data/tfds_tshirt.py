"""`mnist_tshirt` from the full sets of tensorflow-datasets, prepared under `data_dir` beforehand.

Prepare them once with `tfds build mnist fashion_mnist --file_format=array_record --data_dir=...`,
as tfds_images.py says.
"""

import dataclasses

import numpy as np

from jaxunlearn import data
from jaxunlearn.data.mnist_tshirt import with_tshirt
from jaxunlearn.data.tfds_images import prepared, read
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Source:
  data_dir: str = "~/tensorflow_datasets"
  share: ranges.Under1 = 606 / 60606
  digits: str = "mnist"
  clothes: str = "fashion_mnist"

  def load(self) -> tuple[data.Records, data.Records]:
    digits = prepared(self.data_dir, self.digits)
    train, test = read(digits, "train"), read(digits, "test")
    clothes = read(prepared(self.data_dir, self.clothes), "train", limit=2)
    rows = train + test
    data.check_one_size({row["image"].shape for row in [*rows, *clothes]})
    image = np.stack([row["image"][..., 0] for row in rows])
    label = np.array([row["label"] for row in rows])
    return with_tshirt(image, label, clothes[1]["image"][..., 0], len(train), self.share)
