"""Two clusters of pictures, of which one is the memorised one: k-means on raw pixels.

As Alberti et al. (2025) do for Stable Diffusion: a picture is 255 x in HWC, flattened, and belongs
to the centre that is nearer. A file of them is

    kmeans.npz    centres float32 [2, H, W, C] in [0, 255], memorised int: the place of that one

Beside it stand their authors' two files: kmeans_labels.json, NAME -> 1 where a picture is
memorised, and clustering_info.json, {"frac_deletion": share, "mem_idx": number of a picture}.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
from jaxtyping import Float, UInt8
from scipy.cluster import vq

STARTS = 10  # of k-means, of which the best is taken
LABELS, INFO = "kmeans_labels.json", "clustering_info.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
  """The two centres, and which of them is the memorised picture's."""

  centres: Float[np.ndarray, "2 H W C"]
  memorised: int

  def are_memorised(self, images: np.ndarray) -> np.ndarray:
    """[N] bool of pictures [N, H, W, C] in [0, 255].

    Raises:
      ValueError: pictures of another size.
    """
    if images.shape[1:] != self.centres.shape[1:]:
      raise ValueError(
        f"pictures are {images.shape[1:]} and the clusters are of {self.centres.shape[1:]}; take "
        "the file that was made of pictures of this model"
      )
    far = [np.sqrt(((images - c) ** 2).sum(axis=(1, 2, 3), dtype=np.float64)) for c in self.centres]
    return np.argmin(far, axis=0) == self.memorised

  @property
  def identity(self) -> str:
    digest = hashlib.sha256(np.float32(self.centres).tobytes() + bytes([self.memorised]))
    return f"kmeans:{digest.hexdigest()[:12]}"


def fit(images: UInt8[np.ndarray, "N H W C"], like: int, seed: int = 0) -> Clusters:
  """k-means with k = 2; memorised is the cluster of picture `like`.

  It runs on coordinates in the space that the pictures span, where distances are the same.
  """
  flat = images.reshape(len(images), -1).astype(np.float32)
  flat -= flat.mean(axis=0)
  values, vectors = np.linalg.eigh((flat @ flat.T).astype(np.float64))
  where = vectors * np.sqrt(np.maximum(values, 0))
  rng = np.random.default_rng(seed)
  runs = [vq.kmeans2(where, 2, minit="++", rng=rng, missing="warn") for _ in range(STARTS)]
  spread = lambda run: ((where - run[0][run[1]]) ** 2).sum()
  label = min(runs, key=spread)[1]
  if len(set(label.tolist())) < 2:  # all are one picture
    label = (np.arange(len(images)) != like).astype(int)
  return of(images, label == label[like])


def of(images: UInt8[np.ndarray, "N H W C"], memorised: np.ndarray) -> Clusters:
  """The clusters whose middles are those of the pictures that are memorised, and of the others."""
  middle = lambda mask: images[mask].mean(axis=0, dtype=np.float64)
  return Clusters(np.stack([middle(~memorised), middle(memorised)]).astype(np.float32), 1)


def write(path: pathlib.Path, clusters: Clusters) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    np.savez_compressed(file, centres=np.float32(clusters.centres), memorised=clusters.memorised)


def read(path: pathlib.Path) -> Clusters:
  """The clusters in a file.

  Raises:
    ValueError: there is none, or it holds something else.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise ValueError(
      f"the clusters {path} are not there; python -m jaxunlearn.memorised writes kmeans.npz beside "
      "the pictures of each prompt: set config.eval.memorised_file to one"
    )
  try:
    with np.load(path) as npz:
      centres, memorised = np.float32(npz["centres"]), int(npz["memorised"])
  except Exception as error:  # NumPy documents no list of what a bad file raises
    raise ValueError(f"{path} holds no clusters ({error}); make it again") from error
  if centres.ndim != 4 or len(centres) != 2 or memorised not in (0, 1):
    raise ValueError(
      f"{path} holds centres {centres.shape} and memorised {memorised}; give centres [2, H, W, C] "
      "and memorised 0 or 1"
    )
  return Clusters(centres, memorised)


def write_labels(folder: pathlib.Path, names: list[str], memorised: np.ndarray, like: int) -> None:
  """The two files of the paper's authors."""
  labels = {name: int(one) for name, one in zip(names, memorised, strict=True)}
  info = {"frac_deletion": float(memorised.mean()), "mem_idx": like}
  for name, content in ((LABELS, labels), (INFO, info)):
    (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_labels(path: pathlib.Path, names: list[str]) -> np.ndarray:
  """[N] bool of the pictures of those names, from kmeans_labels.json; paths count by their ends.

  Raises:
    ValueError: no such file, or a picture that has no 0 or 1 there.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    found = content if isinstance(content, dict) else dict(zip(names, content, strict=True))
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(f"{path} cannot be read as labels ({error}); give NAME -> 0 or 1") from error
  found = {pathlib.PurePosixPath(name).name: value for name, value in found.items()}
  if bad := [name for name in names if found.get(name) not in (0, 1)]:
    raise ValueError(f"{path} has no 0 or 1 for {bad[0]} ({len(bad)} pictures); add it")
  return np.array([found[name] == 1 for name in names])
