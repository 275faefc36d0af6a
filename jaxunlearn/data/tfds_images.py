"""Images with labels from tensorflow-datasets, like CIFAR-10, prepared under `data_dir` beforehand.

They must be in array_record format, which is read without TensorFlow: prepare once with
`tfds build cifar10 --file_format=array_record --data_dir=...`. All pixels are held in memory.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxunlearn import data, errors


@dataclasses.dataclass(frozen=True)
class Source:
  data_dir: str = "~/tensorflow_datasets"
  dataset: str = "cifar10"  # any whose examples have an `image` and a `label`, all of one size
  train: str = "train"  # the split to train on
  heldout: str = "test"

  def load(self) -> tuple[data.Records, data.Records]:
    """Ids are `cifar10/train/00000`; classes have the data set's own names.

    Raises:
      ValueError: as `prepared` and `read` do, or examples without image and label.
    """
    builder = prepared(self.data_dir, self.dataset)
    if missing := {"image", "label"} - set(builder.info.features):
      raise ValueError(
        f"the examples of {self.dataset!r} have no {min(missing)!r}; "
        "name a data set with an image and a label"
      )
    return self._records(builder, self.train), self._records(builder, self.heldout)

  def _records(self, builder: Any, split: str) -> data.Records:
    rows = read(builder, split)
    data.check_one_size({row["image"].shape for row in rows})
    return data.Records(
      ids=np.array([f"{self.dataset}/{split}/{i:05d}" for i in range(len(rows))]),
      image=np.stack([row["image"] for row in rows]),
      label=np.array([row["label"] for row in rows], np.int32),
      classes=tuple(builder.info.features["label"].names),
    )


def prepared(data_dir: str, name: str) -> Any:
  """The tfds builder of a data set on disk, of its newest version there.

  Raises:
    ValueError: tensorflow-datasets is not installed, or no such data set is prepared, or it
      names Python classes of other packages, which tfds would import.
  """
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ValueError(
      f"data set {name!r} needs tensorflow-datasets; run: pip install 'jaxunlearn[tfds]'"
    ) from error
  root = pathlib.Path(data_dir).expanduser() / name
  versions = sorted(root.glob("*/dataset_info.json")) + sorted(root.glob("*/*/dataset_info.json"))
  if not versions:
    raise ValueError(
      f"no prepared data set under {root}; run: "
      f"tfds build {name} --file_format=array_record --data_dir={data_dir}"
    )
  folder = versions[-1].parent
  for kind in _classes(json.loads((folder / "features.json").read_text())):
    if not kind.startswith("tensorflow_datasets."):
      raise ValueError(f"{folder} has features of {kind!r}; take a set of tfds' own features")
  return tfds.builder_from_directory(str(folder))


def _classes(features: Any) -> Iterator[str]:
  """The names of Python classes in a features.json, also in the JSON that its strings hold."""
  if isinstance(features, list):
    for part in features:
      yield from _classes(part)
  for key, value in features.items() if isinstance(features, dict) else ():
    legacy = key == "type" and "content" in features
    if isinstance(value, str) and (legacy or key in ("pythonClassName", "python_class_name")):
      yield value
    holds = isinstance(value, str) and key in ("json", "content")
    yield from _classes(json.loads(value) if holds else value)


def read(builder: Any, split: str, limit: int | None = None) -> list[Any]:
  """The examples of a split in order, or the first `limit` of them.

  Raises:
    ValueError: no such split, or a file format that TensorFlow alone reads.
  """
  errors.check_choice(f"split of {builder.name}", split, builder.info.splits)
  try:
    source = builder.as_data_source(split)
  except NotImplementedError as error:
    raise ValueError(
      f"{builder.data_dir} is in {builder.info.file_format.value} format, which needs TensorFlow; "
      "delete it and build it again with --file_format=array_record"
    ) from error
  return [source[i] for i in range(min(len(source), limit or len(source)))]
