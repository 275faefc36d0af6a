"""`mnist_tshirt` from the full sets of tensorflow-datasets, prepared under `data_dir` beforehand.

They must be in array_record format, which is read without TensorFlow: prepare once with
`tfds build mnist fashion_mnist --file_format=array_record --data_dir=...`.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from jaxunlearn import data
from jaxunlearn.data.mnist_tshirt import with_tshirt


@dataclasses.dataclass(frozen=True)
class Source:
  data_dir: str = "~/tensorflow_datasets"
  share: float = 606 / 60606
  digits: str = "mnist"
  clothes: str = "fashion_mnist"

  def load(self) -> tuple[data.Records, data.Records]:
    train = _read_tfds(self.data_dir, self.digits, "train")
    test = _read_tfds(self.data_dir, self.digits, "test")
    clothes = _read_tfds(self.data_dir, self.clothes, "train", limit=2)
    rows = train + test
    data.check_one_size({row["image"].shape for row in [*rows, *clothes]})
    image = np.stack([row["image"][..., 0] for row in rows])
    label = np.array([row["label"] for row in rows])
    return with_tshirt(image, label, clothes[1]["image"][..., 0], len(train), self.share)


def _read_tfds(data_dir: str, name: str, split: str, limit: int | None = None) -> list[Any]:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ValueError(
      "data source tfds_tshirt needs tensorflow-datasets; run: pip install 'jaxunlearn[tfds]'"
    ) from error
  root = pathlib.Path(data_dir).expanduser() / name
  versions = sorted(root.glob("*/dataset_info.json")) + sorted(root.glob("*/*/dataset_info.json"))
  if not versions:
    raise ValueError(
      f"no prepared data set under {root}; run: "
      f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
    )
  source = tfds.builder_from_directory(str(versions[-1].parent)).as_data_source(split)
  return [source[i] for i in range(min(len(source), limit or len(source)))]
