"""Weight files of other projects: where they lie, which file it must be, and how they are read.

safetensors are read as they are. Pickled files (.bin, .pt, .pth) can run code when they are
loaded; they are refused unless JAXUNLEARN_PICKLE=1 is set, and then read by torch's weights-only
loader alone, which is to refuse that.
"""

import dataclasses
import hashlib
import os
import pathlib
import urllib.request
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from jaxunlearn import home
from jaxunlearn.weights import arrays

PICKLED = (".bin", ".pt", ".pth")
ALLOW = "JAXUNLEARN_PICKLE"
TORCH = (2, 10)  # the weights-only loaders before it can be made to run code (CVE-2026-24747)


@dataclasses.dataclass(frozen=True)
class Published:
  """A file that its authors publish and this project does not ship."""

  what: str  # for people: "FID's Inception"
  url: str
  field: str  # the config field that takes a path: "config.eval.inception_weights"
  sha256: str  # in full, or its first digits where only they are published; "" where none are

  @property
  def cached(self) -> pathlib.Path:
    """Where it is looked for when the config names no path; JAXUNLEARN_CACHE moves the folder."""
    return home.folder() / self.url.rsplit("/", 1)[-1]

  def find(self, path: str = "") -> pathlib.Path:
    """The file at `path`, or the cached one.

    Raises:
      ValueError: it is not there, or not that file; the line says what to do.
    """
    file = pathlib.Path(path).expanduser() if path else self.cached
    if not file.is_file():
      raise ValueError(
        f"{self.what} needs {file}, which is not there: fetch {self.url} "
        f"(SHA-256: {self.sha256 or 'not published'}) to that path, or set {self.field}; "
        "python -m jaxunlearn.weights fetches it"
      )
    if not sha256(file).startswith(self.sha256) and file.suffix != ".safetensors":
      raise ValueError(
        f"{file} is not {self.what}: its SHA-256 is {sha256(file)[:16]}... and should begin with "
        f"{self.sha256}; fetch {self.url} again"
      )
    return file

  def check_shapes(
    self, arrays: Mapping[str, np.ndarray], expected: frozenset[tuple[str, tuple[int, ...]]]
  ) -> None:
    """Raises ValueError unless the arrays have exactly the expected names and shapes."""
    if wrong := {(name, value.shape) for name, value in arrays.items()} ^ expected:
      raise ValueError(
        f"these are not the weights of {self.what}: {min(wrong)[0]!r} is missing, left over or of "
        f"another shape; fetch {self.url}"
      )

  def fetch(self) -> pathlib.Path:
    """Downloads the file to its cached place, whole or not at all."""
    self.cached.parent.mkdir(parents=True, exist_ok=True)
    temporary = self.cached.with_suffix(".part")
    with urllib.request.urlopen(self.url) as source, temporary.open("wb") as target:
      size = int(source.headers.get("Content-Length", 0)) or None
      with tqdm(total=size, unit="B", unit_scale=True, desc=self.cached.name) as bar:
        while block := source.read(2**20):
          target.write(block)
          bar.update(len(block))
    if not sha256(temporary).startswith(self.sha256):
      raise ValueError(
        f"{self.url} sent another file (SHA-256 {sha256(temporary)}); tell its owner"
      )
    return temporary.replace(self.cached)


def sha256(path: pathlib.Path) -> str:
  with pathlib.Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path: pathlib.Path) -> str:
  """`NAME:HASH`, of the file's name and the first digits of its SHA-256."""
  return f"{path.stem}:{sha256(path)[:12]}"


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """A flat state dict, name -> array, all in memory; raises ValueError as `open_`."""
  return dict(open_(path))


def open_(path: pathlib.Path) -> Mapping[str, np.ndarray]:
  """A flat state dict, name -> array; a .safetensors is read array by array, when one is asked for.

  Raises:
    ValueError: a damaged file, one that holds more than arrays, or a pickled one, unless that is
      allowed and a torch for it installed.
  """
  path = pathlib.Path(path)
  if path.suffix == ".safetensors":
    return arrays.of_file(path)
  if path.suffix not in PICKLED:
    raise ValueError(f"{path} is no weights file; give .safetensors, {', '.join(PICKLED)}")
  if not pickle_allowed():
    raise ValueError(
      f"{path} is pickled, and a pickle can run code when it is read; convert it to .safetensors, "
      f"or set {ALLOW}=1 where you trust its origin, for torch's weights-only loader to read it"
    )
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{path} is pickled, which only torch's weights-only loader may read, and torch is not "
      "installed: install torch, or convert the file to .safetensors where it is"
    ) from error
  if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
    raise ValueError(
      f"{path} is pickled and torch is {torch.__version__}, whose weights-only loader can be made "
      f"to run code; install torch {'.'.join(map(str, TORCH))} or newer"
    )
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch documents no list of what a bad file raises
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f"{path} cannot be read as weights alone ({reason}); fetch it again"
    ) from error
  if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
    raise ValueError(f"{path} is not a flat state dict; save the module's state_dict() alone")
  return {
    name: value.float().numpy() if value.is_floating_point() else value.numpy()
    for name, value in state.items()
  }


def pickle_allowed() -> bool:
  return os.environ.get(ALLOW) == "1"
