"""timing.jsonl: what steps cost, apart from metrics.jsonl, which equal runs have bit for bit.

A line has `step`, and of the steps since the line before: the seconds of one, the rows and the
TFLOP a second, and the share of the devices' peak where that is known. Compiling, checkpoints and
probes are not counted.
"""

import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from jaxunlearn.mesh import processes

# By the start of JAX's name of a device: TFLOP/s of dense products in bfloat16, and in float32 as
# XLA runs it unless told otherwise (TF32 on GPUs, bfloat16 on TPUs). From the vendors' data sheets.
PEAKS = {
  "TPU v4": (275, 275),
  "TPU v5": (459, 459),  # v5p
  "TPU v5 lite": (197, 197),  # v5e
  "TPU v6 lite": (918, 918),
  "NVIDIA A100": (312, 156),
  "NVIDIA H100 80GB HBM3": (989.4, 494.7),
  "NVIDIA H100 PCIe": (756, 378),
  "NVIDIA H200": (989.4, 494.7),
  "NVIDIA L4": (121, 60),
  "NVIDIA L40S": (362, 183),
}


def peak(devices: Sequence[Any], dtype: str | None) -> float | None:
  """FLOP/s of all devices together at best; None where they are none of PEAKS."""
  kind = devices[0].device_kind
  known = [name for name in PEAKS if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
  if not known:
    return None
  return len(devices) * PEAKS[max(known, key=len)][dtype != "bfloat16"] * 1e12


def total(path: pathlib.Path) -> float | None:
  """The seconds of all steps of a run, from its mean lap; None where nothing was timed."""
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  if not lines:
    return None
  return lines[-1]["step"] * sum(line["seconds"] for line in lines) / len(lines)


class Clock:
  """Times laps of steps, each of `batch` rows, on devices of `peak` FLOP/s (None: not known)."""

  def __init__(self, path: pathlib.Path, batch: int, peak: float | None = None):
    self._path, self._batch, self._peak = path, batch, peak
    self._step: int | None = None
    self._begun = 0.0

  def start(self, step: int) -> None:
    """A lap begins after that step."""
    self._step, self._begun = step, time.perf_counter()

  def lap(self, step: int, flops: float) -> dict[str, str]:
    """Writes the lap that ends with a step; its numbers for the bar, none of an empty lap.

    Args:
      flops: of one of its steps, on all devices.
    """
    if self._step is None or step <= self._step:
      return {}
    seconds = (time.perf_counter() - self._begun) / (step - self._step)
    line = {"step": step, "seconds": seconds, "rows_per_second": self._batch / seconds}
    line["tflops_per_second"] = flops / seconds / 1e12
    said = {"rows/s": f"{line['rows_per_second']:.3g}"}
    said["TFLOP/s"] = f"{line['tflops_per_second']:.3g}"
    if self._peak:
      line["share_of_peak"] = flops / seconds / self._peak
      said["of peak"] = f"{line['share_of_peak']:.0%}"
    if processes.first():
      with self._path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    self.start(step)
    return said
