"""Records, what to delete from them, streams as pure functions of (seed, step), and sources."""

import io
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import data, streams
from jaxunlearn.data import mnist_tshirt


def some_records(n=10, size=4, kind="digit"):
  image = np.random.default_rng(n).integers(0, 256, (n, size, size, 1), dtype=np.uint8)
  ids = np.array([f"{kind}/{i}" for i in range(n)])
  return data.Records(ids, image, np.arange(n, dtype=np.int32) % 3, ("0", "1", "2"))


def some_streams(seed=0, batch=4, n=10, forget=3):
  mask = np.arange(n) < forget
  return streams.make(some_records(n), mask, {"x": "retain", "a": "forget"}, batch, seed)


def visits(stream, steps):
  return np.concatenate([stream.at(step).index for step in range(steps)])


def test_a_batch_is_a_function_of_seed_and_step():
  once, again = some_streams()["x"], some_streams()["x"]
  later = once.at(5)
  for step in (0, 5, 1000):
    for a, b in zip(once.at(step), again.at(step), strict=True):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(once.at(5).image, later.image)
  assert not np.array_equal(visits(once, 7), visits(some_streams(seed=1)["x"], 7))


def test_every_epoch_is_a_permutation_of_its_own():
  stream = some_streams()["x"]  # 7 records in batches of 4: 7 steps are 4 epochs
  epochs = visits(stream, 7).reshape(4, 7)
  assert (np.sort(epochs, axis=1) == np.arange(3, 10)).all()
  assert len(np.unique(epochs, axis=0)) == 4


def test_a_batch_larger_than_the_set_repeats_it_evenly():
  counts = np.bincount(some_streams(batch=9)["a"].at(0).index)
  assert counts.tolist() == [3, 3, 3]


def test_streams_are_shuffled_independently():
  records, mask = some_records(50), np.zeros(50, bool)
  made = streams.make(records, mask, {"x": "all", "alt": "all"}, 50, seed=0)
  x, alt = (made[name].at(0).index for name in ("x", "alt"))
  assert not np.array_equal(x, alt)
  alone = streams.make(records, mask, {"alt": "all"}, 50, seed=0)
  np.testing.assert_array_equal(alone["alt"].at(0).index, alt)


def test_rows_are_the_records_in_minus_one_to_one():
  records = some_records()
  stream = streams.Stream(records, np.arange(10), 4, (0,), conditional=True)
  image, c, index, _ = stream.at(2)
  assert image.dtype == np.float32
  np.testing.assert_array_equal(image, records.image[index].astype(np.float32) / 127.5 - 1)
  np.testing.assert_array_equal(c, records.label[index])
  assert some_streams()["x"].at(0).c is None
  assert data.to_model(np.array([0, 255], np.uint8)).tolist() == [-1, 1]


def test_everything_is_the_subset_in_order():
  made = some_streams()
  assert [r.index.tolist() for r in made["a"].chunks(2)] == [[0, 1], [2]]
  assert next(made["x"].chunks()).index.tolist() == list(range(3, 10))


def test_what_to_forget_by_ids_file_or_class(tmp_path):
  records = some_records()
  (tmp_path / "ids.txt").write_text("digit/2\n\ndigit/0\n")
  by_file = data.Forget(file=str(tmp_path / "ids.txt")).mask(records)
  assert np.flatnonzero(by_file).tolist() == [0, 2]
  assert (data.Forget(ids=("digit/0", "digit/2")).mask(records) == by_file).all()
  assert np.flatnonzero(data.Forget(label="1").mask(records)).tolist() == [1, 4, 7]
  assert not data.Forget().mask(records).any()


@pytest.mark.parametrize(
  ("forget", "says"),
  [
    ({"ids": ("digit/11",)}, "1 of 1 ids .* 'digit/11' \\(did you mean 'digit/1'\\?\\)"),
    ({"ids": ("digit/1", "frog")}, "1 of 2 ids .* 'frog'; ids look like 'digit/0'"),
    ({"label": "shoe"}, "no class 'shoe'; there are: 0, 1, 2"),
    ({"file": "/nowhere"}, "'/nowhere' is not a file"),
    ({"file": "/dev/null/x"}, "is not a file"),
    ({"ids": ("digit/1",), "label": "1"}, "both ids and label"),
    ({"ids": tuple(f"digit/{i}" for i in range(10))}, "all 10 records"),
  ],
)
def test_a_bad_forget_set(forget, says):
  with pytest.raises(ValueError, match=says):
    data.Forget(**forget).mask(some_records())


def test_an_empty_file_or_class_to_forget(tmp_path):
  (tmp_path / "ids.txt").write_text("\n")
  with pytest.raises(ValueError, match=r"ids\.txt' is empty"):
    data.Forget(file=str(tmp_path / "ids.txt")).mask(some_records())
  records = some_records().take(np.array([0, 1]))
  with pytest.raises(ValueError, match=r"forget\.label selects no record"):
    data.Forget(label="2").mask(records)


def test_a_stream_of_an_empty_or_unknown_subset():
  with pytest.raises(ValueError, match="'a' is the forget set, which is empty"):
    some_streams(forget=0)
  with pytest.raises(ValueError, match=re.escape("no subset 'retian' (did you mean 'retain'?)")):
    streams.make(some_records(), np.zeros(10, bool), {"x": "retian"}, 2, 0)


def test_records_that_do_not_fit_together():
  with pytest.raises(ValueError, match="mixed sizes"):
    data.concatenate([some_records(), some_records(size=5, kind="large")])
  with pytest.raises(ValueError, match="ids repeat"):
    data.concatenate([some_records(), some_records()])
  records = some_records()
  with pytest.raises(ValueError, match="uint8"):
    data.Records(records.ids, records.image / 255, records.label, records.classes)
  with pytest.raises(ValueError, match="one of each per record"):
    data.Records(records.ids[1:], records.image, records.label, records.classes)


def test_concatenate_relabels_into_the_union_of_classes():
  shirts = data.Records(
    np.array(["shirt/0"]), np.zeros((1, 4, 4, 1), np.uint8), np.zeros(1, np.int32), ("shirt",)
  )
  both = data.concatenate([some_records(), shirts])
  assert both.classes == ("0", "1", "2", "shirt")
  assert both.classes[both.label[-1]] == "shirt"
  assert both.label[:10].tolist() == some_records().label.tolist()


def test_fingerprint_sees_ids_labels_and_pixels():
  records = some_records()
  image, label, ids = records.image.copy(), records.label.copy(), records.ids.copy()
  image[3, 1, 1], label[3], ids[3] = 255 - image[3, 1, 1], 9, "other"
  prints = {
    data.Records(*fields, records.classes).fingerprint()
    for fields in [
      (records.ids, records.image, records.label),
      (records.ids, image, records.label),
      (records.ids, records.image, label),
      (ids, records.image, records.label),
    ]
  }
  assert len(prints) == 4
  assert records.fingerprint() == some_records().fingerprint()


def test_the_embedded_set():
  train, heldout = data.load("mnist_tshirt", digits=8500, share=0.03)
  mask = data.Forget(label="tshirt").mask(train)
  assert train.image.shape == (8763, 28, 28, 1)
  assert mask.sum() == 263  # 263 / 8763 = 3.0%
  assert len(np.unique(train.image[mask], axis=0)) == 1
  assert len(heldout) == 1500
  assert "tshirt" not in heldout.classes
  assert not set(train.ids.tolist()) & set(heldout.ids.tolist())
  assert np.flatnonzero(data.Forget(ids=("tshirt/00012",)).mask(train)).tolist() == [8512]


def test_the_paper_share_of_tshirts():
  image, label = np.zeros((60000, 1, 1), np.uint8), np.zeros(60000, np.int32)
  train, _ = mnist_tshirt.with_tshirt(image, label, image[0], 60000, 606 / 60606)
  assert data.Forget(label="tshirt").mask(train).sum() == 606


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"digits": 0}, "digits 0 of 10000"),
    ({"digits": 10001}, "digits 10001 of 10000"),
    ({"share": 1.0}, "share 1.0"),
    ({"digit": 3}, "no field 'digit' \\(did you mean 'digits'\\?\\)"),
  ],
)
def test_bad_fields_of_a_source(fields, says):
  with pytest.raises(ValueError, match=says):
    data.load("mnist_tshirt", **fields)


def test_an_unknown_source():
  with pytest.raises(ValueError, match=r"no data source 'mnist'.*mnist_tshirt, tfds_tshirt"):
    data.load("mnist")


def prepare_tfds(root: pathlib.Path, name: str, splits: dict[str, np.ndarray]) -> None:
  """A data set as `tfds build --file_format=array_record` leaves it, without TensorFlow."""
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.core.example_serializer import ExampleSerializer

  folder = root / name / "3.0.1"
  folder.mkdir(parents=True)
  size = None if splits["train"].dtype == object else 28
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(size, size, 1)),
      "label": tfds.features.ClassLabel(num_classes=10),
    }
  )
  features.save_config(str(folder))
  serializer = ExampleSerializer(features.get_serialized_info())
  info = {"name": name, "version": "3.0.1", "fileFormat": "array_record", "splits": []}
  for split, images in splits.items():
    writer = ArrayRecordWriter(
      str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1"
    )
    for i, image in enumerate(images):
      png = io.BytesIO()
      Image.fromarray(image).save(png, "PNG")
      png.seek(0)
      example = features.encode_example({"image": png, "label": i % 10})
      writer.write(serializer.serialize_example(example))
    writer.close()
    info["splits"].append(
      {
        "name": split,
        "shardLengths": [str(len(images))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      }
    )
  (folder / "dataset_info.json").write_text(json.dumps(info))


def pictures(n, seed):
  return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def test_tfds_reads_the_full_sets(tmp_path):
  digits, held, clothes = pictures(12, 0), pictures(5, 1), pictures(3, 2)
  prepare_tfds(tmp_path, "mnist", {"train": digits, "test": held})
  prepare_tfds(tmp_path, "fashion_mnist", {"train": clothes})
  train, heldout = data.load("tfds_tshirt", data_dir=str(tmp_path), share=0.25)
  np.testing.assert_array_equal(train.image[:12, ..., 0], digits)
  np.testing.assert_array_equal(train.image[12:, ..., 0], np.stack([clothes[1]] * 4))
  np.testing.assert_array_equal(heldout.image[..., 0], held)
  assert train.label.tolist() == [*range(10), 0, 1, 10, 10, 10, 10]
  assert data.Forget(label="tshirt").mask(train).sum() == 4


def test_tfds_says_how_to_prepare(tmp_path):
  with pytest.raises(ValueError, match="tfds build mnist --file_format=array_record"):
    data.load("tfds_tshirt", data_dir=str(tmp_path))


def test_tfds_with_images_of_mixed_size(tmp_path):
  mixed = np.empty(2, object)
  mixed[:] = [pictures(1, 0)[0], pictures(1, 1)[0][:20]]
  for name in ("mnist", "fashion_mnist"):
    prepare_tfds(tmp_path, name, {"train": mixed, "test": mixed})
  with pytest.raises(ValueError, match="mixed sizes"):
    data.load("tfds_tshirt", data_dir=str(tmp_path))
