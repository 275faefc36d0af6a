"""metrics.jsonl: one JSON object a line, each with `step`; clu's metric-writer method names.

`replace` is how every other file of a run is written.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxunlearn.mesh import processes


class Writer:
  """Appends scalars; on opening drops lines after `step` (a killed run repeats those steps).

  Where tensorboardX is installed they go to tensorboard/ beside the file as well. Of several
  processes the first one writes.
  """

  def __init__(self, path: pathlib.Path, step: int = 0):
    self._file: Any = None
    self._board: Any = None
    if processes.first():
      kept = [line for line in read(path) if line["step"] <= step]
      replace(path, "".join(json.dumps(line) + "\n" for line in kept))
      self._file = path.open("a", buffering=1)
      self._board = _tensorboard(path.parent / "tensorboard", step)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """One line; NaN and infinity are written as strings, so that each line is strict JSON."""
    if self._file is None:
      return
    finite = {k: v if abs(v) < float("inf") else str(v) for k, v in scalars.items()}
    self._file.write(json.dumps({"step": step, **finite}) + "\n")
    for name, value in scalars.items() if self._board is not None else ():
      self._board.add_scalar(name, value, step)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: object) -> None:
    for out in (self._file, self._board):
      if out is not None:
        out.close()


def _tensorboard(folder: pathlib.Path, step: int) -> Any:
  """A writer of TensorBoard's files that drops what follows `step`; None where there is none."""
  with contextlib.suppress(ImportError):
    import tensorboardX

    return tensorboardX.SummaryWriter(str(folder), purge_step=step + 1)
  return None


def replace(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file, text as UTF-8; it appears whole or not at all."""
  temporary = path.with_suffix(".tmp")
  temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  temporary.replace(path)


def read(path: pathlib.Path) -> list[dict]:
  """The whole lines of a metrics file; one that is damaged or was cut off by a kill is left out."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text(errors="replace").splitlines():
    with contextlib.suppress(ValueError):
      line = json.loads(text)
      if isinstance(line, dict) and isinstance(line.get("step"), int):
        lines.append(line)
  return lines
