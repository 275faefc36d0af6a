"""timing.jsonl: what steps cost, apart from metrics.jsonl, which equal runs have bit for bit.

A line has `step`, the seconds of a step and the rows a second since the line before; compiling,
checkpoints and probes are not counted.
"""

import json
import pathlib
import time

from jaxunlearn.mesh import processes


class Clock:
  """Times laps of steps, each of `batch` rows."""

  def __init__(self, path: pathlib.Path, batch: int):
    self._path, self._batch = path, batch
    self._step: int | None = None
    self._begun = 0.0

  def start(self, step: int) -> None:
    """A lap begins after that step."""
    self._step, self._begun = step, time.perf_counter()

  def lap(self, step: int) -> dict[str, str]:
    """Writes the lap that ends with a step; its numbers for the bar, none of an empty lap."""
    if self._step is None or step <= self._step:
      return {}
    seconds = (time.perf_counter() - self._begun) / (step - self._step)
    line = {"step": step, "seconds": seconds, "rows_per_second": self._batch / seconds}
    if processes.first():
      with self._path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    self.start(step)
    return {"rows/s": f"{line['rows_per_second']:.3g}"}
