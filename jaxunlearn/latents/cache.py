"""The moments of records' latents, a file each, named by the picture and by the autoencoder.

    CACHE/latents/CODEC/ab/ab12....npy      float16 [h, w, 2 z], mean and log variance

What is there is not computed again, so that a launch which was stopped goes on. A picture is known
by the digest of its file and by how it was decoded; CODEC is the autoencoder's `identity`.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from jaxunlearn import data, home, latents


@dataclasses.dataclass(frozen=True)
class Moments:
  """Of some records, read when asked for."""

  paths: np.ndarray  # [N] str
  scaling_factor: float
  shape: tuple[int, int, int]  # of a file

  def __len__(self) -> int:
    return len(self.paths)

  def draw(
    self, index: np.ndarray, rng: np.random.Generator, rows: np.ndarray | slice = slice(None)
  ) -> Float[np.ndarray, "n h w z"]:
    """Latents of the records `index`, drawn from their posteriors; float32. `rows` are the ones
    wanted of them: the draws are those of all, and the files of others are not read.

    Raises:
      ValueError: a file is lost or damaged, or of another autoencoder.
    """
    mean, log_var = self._both(index[rows])
    noise = rng.standard_normal((len(index), *mean.shape[1:]), np.float32)[rows]
    return np.float32(self.scaling_factor) * (mean + np.exp(log_var / 2) * noise)

  def means(self, index: np.ndarray) -> Float[np.ndarray, "n h w z"]:
    """The latents of the records `index` without noise; float32. Raises as `draw`."""
    return np.float32(self.scaling_factor) * self._both(index)[0]

  def _both(self, index: np.ndarray) -> list[np.ndarray]:
    """Mean and log variance, float32."""
    files = [_read(path, self.shape) for path in self.paths[index].tolist()]
    return np.split(np.stack(files).astype(np.float32), 2, axis=-1)

  def take(self, index: np.ndarray) -> "Moments":
    return dataclasses.replace(self, paths=self.paths[index])


def folder() -> pathlib.Path:
  """Where files are kept; the variable JAXUNLEARN_CACHE moves it."""
  return home.folder() / "latents"


def missing(codec: latents.Codec, records: data.Records) -> np.ndarray:
  """The rows of the records whose moments are not there yet."""
  files = paths(codec, records)
  return np.flatnonzero([not pathlib.Path(path).is_file() for path in files.tolist()])


def fill(codec: latents.Codec, records: data.Records) -> Moments:
  """The moments of all records, those that are missing computed now."""
  files = paths(codec, records)
  rows, batch = missing(codec, records), codec.batch
  bar = tqdm(range(0, len(rows), batch), desc="encode", disable=not len(rows))
  for start in bar:
    mine = rows[start : start + batch]
    full = np.resize(mine, batch)  # one shape for all: the last is filled up with its own
    found = codec.moments(data.to_model(records.image[full]))
    for row, moments in zip(mine, found, strict=False):
      _write(pathlib.Path(files[row]), moments)
  height, width = (side // codec.net.factor for side in records.image.shape[1:3])
  shape = (height, width, 2 * codec.net.latent_channels)
  return Moments(files, codec.net.scaling_factor, shape)


def look(
  codec: latents.Pixels | latents.Codec, records: data.Records
) -> Callable[[np.ndarray], Float[np.ndarray, "n h w z"]]:
  """index -> what the network sees of those records, float32: pixels, or latents without noise."""
  if isinstance(codec, latents.Codec):
    return fill(codec, records).means
  return lambda index: data.to_model(records.image[index])


def forget(codec: latents.Codec, gone: data.Records, kept: data.Records) -> int:
  """Removes the files of records that are gone, but for those that a kept one has as well.

  Returns how many there were.
  """
  files = {*paths(codec, gone).tolist()} - {*paths(codec, kept).tolist()}
  there = [path for path in map(pathlib.Path, files) if path.is_file()]
  for path in there:
    path.unlink()
  return len(there)


def paths(codec: latents.Codec, records: data.Records) -> np.ndarray:
  """The file of each record, [N] str."""
  how = f"{records.image.shape[1:]} {getattr(records.image, 'decoding', '')}"
  home = folder() / codec.identity

  def path(digest: str) -> str:
    name = hashlib.sha256(f"{digest} {how}".encode()).hexdigest()
    return str(home / name[:2] / f"{name}.npy")

  return np.array([path(digest) for digest in records.sha256().tolist()], dtype=str)


def _write(path: pathlib.Path, moments: np.ndarray) -> None:
  """The file appears whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(f".{os.getpid()}")
  with temporary.open("wb") as file:
    np.save(file, moments.astype(np.float16))
  temporary.replace(path)


def _read(path: str, shape: tuple[int, int, int]) -> np.ndarray:
  try:
    found = np.load(path)
    if found.shape != shape:
      raise ValueError(f"they are {found.shape} and this autoencoder's are {shape}")
    return found
  except (OSError, ValueError) as error:
    raise ValueError(
      f"the latents in {path} cannot be read ({error}); delete that file and launch again: it is "
      "made anew"
    ) from error
