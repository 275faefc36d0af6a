"""Data: records with ids, what to delete from them, and the named streams that methods read.

A source gives `Records` for training and held-out `Records`. What to delete is data: a list of
record ids, a file of ids (one a line), or the name of a class. From that follow the subsets `all`,
`retain` (X without A) and `forget` (A); a config maps each stream of a method to one of them.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn import errors
from jaxunlearn.methods import Rows

ASSETS = pathlib.Path(__file__).parent / "assets"
SUBSETS = ("all", "retain", "forget")


@dataclasses.dataclass(frozen=True)
class Records:
  """Images with their ids; `image` is uint8 [N, H, W, C]."""

  ids: np.ndarray  # [N] str, unique
  image: np.ndarray
  label: np.ndarray  # [N] int32, into classes
  classes: tuple[str, ...]

  def __post_init__(self) -> None:
    if self.image.ndim != 4 or self.image.dtype != np.uint8:
      raise ValueError(
        f"images are {self.image.dtype} {self.image.shape}; give uint8 [N, H, W, C], "
        "all of one size"
      )
    if not len(self.ids) == len(self.image) == len(self.label):
      raise ValueError(
        f"{len(self.ids)} ids, {len(self.image)} images and {len(self.label)} labels; "
        "give one of each per record"
      )
    if len(np.unique(self.ids)) < len(self.ids):
      raise ValueError("ids repeat; give each record an id of its own")

  def __len__(self) -> int:
    return len(self.ids)

  def take(self, index: np.ndarray) -> "Records":
    return dataclasses.replace(
      self, ids=self.ids[index], image=self.image[index], label=self.label[index]
    )

  def fingerprint(self) -> str:
    """A hash of every id, label and pixel."""
    digest = hashlib.sha256("\n".join(self.ids).encode())
    digest.update(np.ascontiguousarray(self.label).tobytes())
    digest.update(np.ascontiguousarray(self.image).tobytes())
    return digest.hexdigest()[:16]


def concatenate(parts: Sequence[Records]) -> Records:
  """Records of several origins in one set; raises ValueError for images of different sizes."""
  _check_one_size({part.image.shape[1:] for part in parts})
  classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
  relabel = lambda p: np.array([classes.index(name) for name in p.classes], np.int32)[p.label]
  return Records(
    ids=np.concatenate([p.ids for p in parts]),
    image=np.concatenate([p.image for p in parts]),
    label=np.concatenate([relabel(p) for p in parts]),
    classes=classes,
  )


def _check_one_size(shapes: set[tuple[int, ...]]) -> None:
  if len(shapes) > 1:
    raise ValueError(f"images of mixed sizes {sorted(shapes)}; resize them to one size first")


def to_model(image: np.ndarray) -> np.ndarray:
  """uint8 pixels -> float32 in [-1, 1]."""
  return image.astype(np.float32) / 127.5 - 1


def load(source: str, **fields: Any) -> tuple[Records, Records]:
  """(training, held-out) records of a named source, its fields from the config.

  Raises:
    ValueError: no such source, or a field it does not take; the choices are listed.
  """
  errors.check_choice("data source", source, SOURCES)
  return errors.build(SOURCES[source], f"data source {source}", fields).load()


@dataclasses.dataclass(frozen=True)
class MnistTshirt:
  """Digits, and one T-shirt (Fashion-MNIST, training image 1) repeated to a share of the set.

  Alberti et al. (2025), section 5.2: 606 copies in 60,606 images, 1.0%.
  """

  digits: int = 8500  # training digits, the first ones; the rest are held out
  share: float = 0.03  # of the training set that is copies of the T-shirt

  def load(self) -> tuple[Records, Records]:
    with np.load(ASSETS / "digits.npz") as npz:
      return with_tshirt(npz["image"], npz["label"], npz["tshirt"], self.digits, self.share)


@dataclasses.dataclass(frozen=True)
class TfdsTshirt:
  """The same from the full sets of tensorflow-datasets, prepared under `data_dir` beforehand.

  They must be in array_record format, which is read without TensorFlow: prepare once with
  `tfds build mnist fashion_mnist --file_format=array_record --data_dir=...`.
  """

  data_dir: str = "~/tensorflow_datasets"
  share: float = 606 / 60606
  digits: str = "mnist"
  clothes: str = "fashion_mnist"

  def load(self) -> tuple[Records, Records]:
    train = _read_tfds(self.data_dir, self.digits, "train")
    test = _read_tfds(self.data_dir, self.digits, "test")
    clothes = _read_tfds(self.data_dir, self.clothes, "train", limit=2)
    rows = train + test
    _check_one_size({row["image"].shape for row in [*rows, *clothes]})
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


def with_tshirt(
  image: np.ndarray, label: np.ndarray, tshirt: np.ndarray, digits: int, share: float
) -> tuple[Records, Records]:
  """The first `digits` images and copies of the T-shirt to a share; the other images held out."""
  if not 0 < digits <= len(image):
    raise ValueError(f"digits {digits} of {len(image)} images; use 1 to {len(image)}")
  if not 0 <= share < 1:
    raise ValueError(f"T-shirt share {share}; use a share of at least 0 and under 1")
  records = Records(
    ids=np.array([f"mnist/{i:05d}" for i in range(len(image))]),
    image=image[..., None],
    label=label.astype(np.int32),
    classes=tuple(str(d) for d in range(10)),
  )
  copies = round(digits * share / (1 - share))
  shirts = Records(
    ids=np.array([f"tshirt/{i:05d}" for i in range(copies)], dtype=str),
    image=np.repeat(tshirt[None, ..., None], copies, axis=0),
    label=np.zeros(copies, np.int32),
    classes=("tshirt",),
  )
  train = records.take(np.arange(digits))
  return concatenate([train, shirts]), records.take(np.arange(digits, len(image)))


SOURCES = {"mnist_tshirt": MnistTshirt, "tfds_tshirt": TfdsTshirt}


@dataclasses.dataclass(frozen=True)
class Forget:
  """What to delete: exactly one of these; all empty where a run deletes nothing."""

  ids: tuple[str, ...] = ()
  file: str = ""  # a text file with one record id a line
  label: str = ""  # every record of this class

  def mask(self, records: Records) -> np.ndarray:
    """[N] bool: the records to delete.

    Raises:
      ValueError: more than one way given, an id or class that does not exist, or a set that
        leaves nothing to forget or nothing to keep.
    """
    given = [name for name in ("ids", "file", "label") if getattr(self, name)]
    if len(given) > 1:
      raise ValueError(f"forget has both {' and '.join(given)}; give one of ids, file, label")
    if self.label:
      errors.check_choice("class", self.label, records.classes)
      mask = records.label == records.classes.index(self.label)
    else:
      mask = np.isin(records.ids, self._ids(records))
    if given and not mask.any():
      raise ValueError(f"forget.{given[0]} selects no record; name at least one to delete")
    if mask.all():
      raise ValueError(f"forget selects all {len(records)} records; keep at least one")
    return mask

  def _ids(self, records: Records) -> list[str]:
    ids = list(self.ids)
    if self.file:
      path = pathlib.Path(self.file)
      if not path.is_file():
        raise ValueError(f"forget.file {self.file!r} is not a file; give one record id a line")
      ids = [line.strip() for line in path.read_text().splitlines() if line.strip()]
      if not ids:
        raise ValueError(f"forget.file {self.file!r} is empty; give one record id a line")
    missing = sorted(set(ids) - set(records.ids.tolist()))
    if missing:
      raise ValueError(
        f"{len(missing)} of {len(ids)} ids to forget do not exist, the first is {missing[0]!r}"
        f"{errors.nearest(missing[0], records.ids.tolist())}; ids look like '{records.ids[0]}'"
      )
    return ids


@dataclasses.dataclass(frozen=True)
class Stream:
  """An endless shuffled sequence of batches over `index`: a pure function of (seed, step).

  Each epoch is a fresh permutation; batches run over epoch borders, so none is short.
  """

  records: Records
  index: np.ndarray
  batch: int
  seed: tuple[int, ...]
  conditional: bool = False

  def at(self, step: int) -> Rows:
    """The batch of a step: float32 images in [-1, 1], labels if conditional, record numbers."""
    epoch, place = np.divmod(step * self.batch + np.arange(self.batch), len(self.index))
    order = {e: self._permutation(e) for e in np.unique(epoch).tolist()}
    picks = zip(epoch.tolist(), place.tolist(), strict=True)
    return self._rows(self.index[[order[e][p] for e, p in picks]])

  def everything(self) -> Rows:
    """Every record of the stream, in order."""
    return self._rows(self.index)

  def _permutation(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((*self.seed, epoch)).permutation(len(self.index))

  def _rows(self, index: np.ndarray) -> Rows:
    label = self.records.label[index].astype(np.int32) if self.conditional else None
    return Rows(to_model(self.records.image[index]), label, index.astype(np.int32))


def streams(
  records: Records,
  forget: np.ndarray,
  subsets: Mapping[str, str],
  batch: int,
  seed: int,
  conditional: bool = False,
) -> dict[str, Stream]:
  """The named streams of a run: `subsets` maps each to all, retain or forget.

  Raises:
    ValueError: a subset that does not exist, or is empty.
  """
  index = {
    "all": np.arange(len(records)),
    "retain": np.flatnonzero(~forget),
    "forget": np.flatnonzero(forget),
  }
  out = {}
  for name, subset in subsets.items():
    errors.check_choice("subset", subset, SUBSETS)
    if not len(index[subset]):
      raise ValueError(
        f"stream {name!r} is the {subset} set, which is empty; say what to delete in config.forget"
      )
    key = (seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    out[name] = Stream(records, index[subset], batch, key, conditional)
  return out
