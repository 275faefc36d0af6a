"""Data sets as `tfds build --file_format=array_record` leaves them, without TensorFlow."""

import io
import json

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

VERSION = "3.0.1"


def prepare(root, name, splits, *, names=None, label="label", file_format="array_record"):
  """Splits of uint8 images [H, W] or [H, W, C]; the i-th label is i mod 10."""
  folder = root / name / VERSION
  folder.mkdir(parents=True)
  shapes = {(*image.shape, 1)[:3] for images in splits.values() for image in images}
  one = shapes.pop() if len(shapes) == 1 else (None, None, max(shape[2] for shape in shapes))
  kind = {"names": names} if names else {"num_classes": 10}
  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=one), label: tfds.features.ClassLabel(**kind)}
  )
  features.save_config(str(folder))
  serializer = ExampleSerializer(features.get_serialized_info())
  for split, images in splits.items():
    path = folder / f"{name}-{split}.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i, image in enumerate(images):
      example = features.encode_example({"image": _png(image), label: i % 10})
      writer.write(serializer.serialize_example(example))
    writer.close()
  info = {
    "name": name,
    "version": VERSION,
    "fileFormat": file_format,
    "splits": [
      {
        "name": split,
        "shardLengths": [str(len(images))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      }
      for split, images in splits.items()
    ],
  }
  (folder / "dataset_info.json").write_text(json.dumps(info))


def _png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  file.seek(0)
  return file
