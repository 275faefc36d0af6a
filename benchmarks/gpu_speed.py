"""This project and PyTorch in turn on one device, each in a process of its own (gpu.py)."""

import multiprocessing
import statistics
import time
import traceback
from typing import Any

from benchmarks import gpu_cases, turns

FRAMEWORKS = ("ours", "torch")
SECONDS = 2.0  # of counted runs, at least, for each variant
ROUNDS = 5
LIMIT = 90.0  # seconds for a variant to be built once more


def work(pipe: Any, framework: str, case: gpu_cases.Case, device: str) -> None:
  """A process: builds each variant that it is sent, then runs it as often as it is told."""
  while (variant := pipe.recv()) is not None:
    try:
      run = (
        gpu_cases.ours(case, **case.ours[variant])
        if framework == "ours"
        else gpu_cases.theirs(case, device, **case.torch[variant])
      )
      run(), run()  # compiles, warms up
      pipe.send({"seconds": turns.seconds(run)})
      while (times := pipe.recv()) is not None:
        pipe.send(min(turns.seconds(run) for _ in range(times)))
      pipe.send({"peak_gib": _peak(framework, device)})
      del run
    except Exception:  # out of memory, or not compiled: the other variants go on
      pipe.send({"error": traceback.format_exc(limit=1).splitlines()[-1][:200]})


def _peak(framework: str, device: str) -> float | None:
  """GiB of the device's memory that the process held at most."""
  if device == "cpu":
    return None
  if framework == "ours":
    import jax

    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
  import torch

  peak = torch.cuda.max_memory_allocated() / 2**30
  torch.cuda.reset_peak_memory_stats()
  return peak


def speed(case: gpu_cases.Case, device: str, rounds: int) -> list[dict[str, Any]]:
  """A row for each variant of both frameworks; all PyTorch's beside this project's fastest."""
  ours, torch = (_Worker(framework, case, device) for framework in FRAMEWORKS)
  rows = [_alone(ours, variant, rounds) for variant in case.ours]
  alive = [row for row in rows if "seconds" in row]
  if alive and case.torch_rows:
    ours.start(min(alive, key=lambda row: row["seconds"])["variant"])
    rows += [_beside(torch, ours, variant, rounds) for variant in case.torch]
    ours.end()
  ours.stop()
  torch.stop()
  per_picture = gpu_cases.flops(case)
  for row in rows:
    if "seconds" in row:
      row["tflops"] = per_picture * row["rows"] / row["seconds"] / 1e12
  return rows


def built(case: gpu_cases.Case, framework: str, device: str) -> dict[str, float]:
  """Builds the variants of one framework for the first time; seconds, where it could be done."""
  worker, seconds = _Worker(framework, case, device), {}
  for variant in case.ours if framework == "ours" else case.torch:
    begin = time.perf_counter()
    if "error" not in worker.start(variant, limit=None):
      seconds[variant] = time.perf_counter() - begin
      worker.end()
  worker.stop()
  return seconds


def _alone(worker: "_Worker", variant: str, rounds: int) -> dict[str, Any]:
  first = worker.start(variant)
  if "error" in first:
    return worker.row(variant) | first
  times = [worker.run(_times(first["seconds"])) for _ in range(rounds)]
  return worker.row(variant) | {"seconds": statistics.median(times), **worker.end()}


def _beside(worker: "_Worker", ours: "_Worker", variant: str, rounds: int) -> dict[str, Any]:
  """PyTorch's variant; `ratio` is this project's time for a picture over its time."""
  first = worker.start(variant)
  if "error" in first:
    return worker.row(variant) | first
  each = _times(first["seconds"])
  both = [(ours.run(each), worker.run(each)) for _ in range(rounds)]
  share = worker.rows / ours.rows
  return worker.row(variant) | {
    "seconds": statistics.median(b for _, b in both),
    "ratio": statistics.median(a * share / b for a, b in both),
    **worker.end(),
  }


def _times(seconds: float) -> int:
  """Runs of a turn, so that all turns together take SECONDS."""
  return max(1, min(20, int(SECONDS / ROUNDS / max(seconds, 1e-4))))


class _Worker:
  """A process of one framework for one case."""

  def __init__(self, framework: str, case: gpu_cases.Case, device: str):
    self.framework = framework
    self.rows = case.rows if framework == "ours" else case.torch_rows
    self._given = (framework, case, device)
    self._launch()

  def _launch(self) -> None:
    context = multiprocessing.get_context("spawn")
    self.pipe, there = context.Pipe()
    self.process = context.Process(target=work, args=(there, *self._given), daemon=True)
    self.process.start()
    there.close()

  def start(self, variant: str, limit: float | None = LIMIT) -> dict[str, Any]:
    """Waits for the variant's first time, or its error; it is given up after `limit` seconds."""
    self.pipe.send(variant)
    if self.pipe.poll(limit):
      return self.pipe.recv()
    self.process.kill()
    self._launch()
    return {"error": f"not built in {limit:.0f} s"}

  def run(self, times: int) -> float:
    self.pipe.send(times)
    return self.pipe.recv()

  def end(self) -> dict[str, Any]:
    self.pipe.send(None)
    return self.pipe.recv()

  def row(self, variant: str) -> dict[str, Any]:
    return {"framework": self.framework, "variant": variant, "rows": self.rows}

  def stop(self) -> None:
    self.pipe.send(None)
    self.process.join()
