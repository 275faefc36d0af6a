"""The arrays of a weights file, read one at a time; and written so.

What is converted array by array is in memory once: a model of 4 GB takes 4 GB to read and to write.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import safetensors

ALIGNED = 64  # bytes: JAX on a CPU takes over an array that begins at a multiple, without a copy
DTYPE = np.dtype("<f4")
NAMES = {DTYPE: "F32", np.dtype("<f2"): "F16"}  # of the types that are written, in the file


class Arrays(Mapping[str, np.ndarray]):
  """Arrays by name, each made when it is asked for, and not kept."""

  def __init__(self, made: Mapping[str, Callable[[], np.ndarray]]):
    self._made = made

  def __getitem__(self, name: str) -> np.ndarray:
    return self._made[name]()

  def __iter__(self) -> Iterator[str]:
    return iter(self._made)

  def __len__(self) -> int:
    return len(self._made)


def of_file(path: pathlib.Path) -> Arrays:
  """Those of a .safetensors; raises ValueError for a damaged one.

  They are read by their place: a mapped file would be in memory beside what is made of it.
  """
  try:
    file = safetensors.safe_open(path, framework="np", backend="pread")
    names = file.keys()
    return Arrays({name: functools.partial(file.get_tensor, name) for name in names})
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is damaged ({error}); fetch or make it again") from error


def renamed(state: Mapping[str, np.ndarray], names: Mapping[str, str]) -> Arrays:
  """The arrays under other names; `names` maps the old ones that stay to the new."""
  return Arrays({new: functools.partial(state.__getitem__, old) for old, new in names.items()})


def together(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
  """The arrays of several files."""
  return Arrays({k: functools.partial(part.__getitem__, k) for part in parts for k in part})


def aligned(value: np.ndarray) -> np.ndarray:
  """A float32 copy in C order that JAX on a CPU takes over without another."""
  size = value.size * DTYPE.itemsize
  room = np.empty(size + ALIGNED, np.uint8)
  first = -room.ctypes.data % ALIGNED
  out = room[first : first + size].view(DTYPE).reshape(value.shape)
  out[...] = value
  return out


def write(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
  """A .safetensors of arrays, which may be views: each is copied when it is written.

  float16 stays so, and all else is written in float32.

  The library's own `save` has all of them in memory twice.
  """
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}
  end, names = 0, sorted(state)
  for name in names:
    dtype = _type(state[name])
    begin, end = end, end + state[name].size * dtype.itemsize
    place = {"dtype": NAMES[dtype], "shape": state[name].shape, "data_offsets": (begin, end)}
    header[name] = place
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
      file.write(np.ascontiguousarray(state[name], _type(state[name])).data)


def _type(value: np.ndarray | np.generic) -> np.dtype:
  return value.dtype if value.dtype in NAMES else DTYPE
