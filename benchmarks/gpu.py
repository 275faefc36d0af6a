"""What one GPU tells in ten minutes: right numbers, a kill that loses nothing, and how fast it is.

  python -m benchmarks.gpu --out=results                    (one GPU, 10 minutes)
  python -m benchmarks.gpu --out=results --parts numbers "CIFAR-10 UNet, plain step"
  python -m benchmarks.gpu --quick                          (a dry run on tiny networks, on CPU too)

numbers: one step of every method, its direction beside that on this machine's CPU, in float32; and
of three of them on a UNet, in TF32 and in bfloat16 too. resume: a run is killed and started again,
its parameters beside those of a run that was left alone. The other parts are those of gpu_cases.py.
All that they time is built beside the first two, several at once, into the caches of both
compilers. Then runs of this project and of PyTorch take turns, each framework in a process of its
own, alone on the device, and a ratio is between neighbours in time. After each part
gpu_NAME.{md,json} are written anew, so that a run which is cut short keeps what it has; a later run
adds its parts to those that are there. `benchmarks/gpu_wheels.sh FOLDER` fetches what an image may
lack.
"""

import argparse
import atexit
import json
import multiprocessing
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np

from benchmarks import gpu_cases, pages, siss_step, turns

ROOT = pathlib.Path(__file__).parents[1]
FRAMEWORKS = ("ours", "torch")
PRECISIONS = {"float32": "highest", "TF32": "tensorfloat32", "bfloat16": None}
FEW = ("denoising", "siss", "neggrad_retain")  # that are stepped in every precision
SECONDS = 2.0  # of counted runs, at least, for each variant
ROUNDS = 5
LIMIT = 90.0  # seconds for a variant to be built once more
BUILDERS = 4  # processes at once
KILLED = (
  "--config.train.steps=24",
  "--config.train.checkpoint_every=6",
  "--config.eval.metrics=()",
)
KILLED += ("--config.eval.before=False", "--config.eval.after=False", "--config.train.log_every=1")
SAME = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}  # sums in one order


# Numbers.


def directions(precision: str, few: bool, to: pathlib.Path) -> None:
  """Writes the direction of one step of each method, on this process's first device.

  Of every method on a small network with classes; or of FEW on a UNet, which can be bfloat16.
  """
  import jax
  import optax

  from jaxunlearn import build, step
  from tests import cuda_test, nets

  found, half = {}, "bfloat16" if precision == "bfloat16" else "float32"
  with jax.default_matmul_precision(PRECISIONS[precision]):
    for name in FEW if few else cuda_test.METHODS:
      setup = cuda_test.setup_of(name, dtype=half) if few else cuda_test.conditional_setup(name)
      state = build.make_state(setup, nets.random_params(setup.net))
      update = step.make_update(setup, state)
      after, _ = update(state, setup.batch(0))
      mean = optax.tree.get(after.opt, "mu")  # the first moment is a share of the direction
      found[name] = np.concatenate([np.asarray(v).ravel() for v in jax.tree.leaves(mean)])
  np.savez(to, **found)


def numbers(quick: bool) -> list[dict[str, Any]]:
  """How far each direction is from that of a CPU, relative to its norm."""
  wanted = [(few, where) for few in (True, False) for where in ("cpu", "float32")]
  wanted = [(True, "TF32"), (True, "bfloat16"), *(wanted[:2] if quick else wanted)]
  with tempfile.TemporaryDirectory() as folder, futures.ThreadPoolExecutor() as pool:
    child = lambda one: _child(pathlib.Path(folder), *one)
    found = dict(zip(wanted, pool.map(child, wanted), strict=True))
  return [
    {
      "method": method,
      "network": "UNet" if few else "small",
      "precision": precision,
      "distance": _distance(values, found[few, "cpu"][method]),
    }
    for (few, precision), of_methods in found.items()
    for method, values in of_methods.items()
    if precision != "cpu"
  ]


def _child(folder: pathlib.Path, few: bool, where: str) -> dict[str, Any]:
  to = folder / f"{where}{few}.npz"
  command = [sys.executable, "-m", "benchmarks.gpu", f"--to={to}"]
  command += ["--directions", "float32" if where == "cpu" else where, *(["--few"] if few else [])]
  env = os.environ | ({"JAX_PLATFORMS": "cpu"} if where == "cpu" else {})
  subprocess.run(command, check=True, cwd=ROOT, env=env)
  with np.load(to) as npz:
    return dict(npz)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


# Kill and resume.


def resume(quick: bool) -> list[dict[str, Any]]:
  """The parameters of a run that was killed at half, beside those of one that was not."""
  config = "tests/tiny_config.py:siss" if quick else "configs/siss_mnist.py"
  with tempfile.TemporaryDirectory() as folder:
    whole, killed = (pathlib.Path(folder) / name for name in ("whole", "killed"))
    _launch(config, whole).wait()
    child = _launch(config, killed)
    while child.poll() is None and _lines(killed / "metrics.jsonl") < 12:
      time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    reached = _lines(killed / "metrics.jsonl")
    _launch(config, killed).wait()
    a, b = (_parameters(run) for run in (killed, whole))
  return [{"killed_after_step": reached, "largest_difference": float(np.abs(a - b).max())}]


def _launch(config: str, workdir: pathlib.Path) -> subprocess.Popen:
  command = [sys.executable, "-m", "jaxunlearn.main", f"--config={config}"]
  return subprocess.Popen(
    [*command, f"--workdir={workdir}", *KILLED], cwd=ROOT, env=os.environ | SAME
  )


def _lines(path: pathlib.Path) -> int:
  return len(path.read_bytes().splitlines()) if path.is_file() else 0


def _parameters(run: pathlib.Path) -> np.ndarray:
  import jax

  from jaxunlearn.weights import of_run

  params = of_run.read(run, True, ()).params
  return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])


# Speed.


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


# The page.


def markdown(result: dict[str, Any]) -> str:
  env = result["environment"]
  lines = [f"# {result['device']}: numbers, a kill, and speed beside PyTorch", ""]
  commands = "; ".join(f"`{command}`" for command in result["commands"])
  lines += [f"{commands}; jax {env['jax']}, torch {env['torch']}.", ""]
  parts = result["parts"]
  if "numbers" in parts:
    lines += ["Distance of one step's direction from that of the CPU, over its norm:", ""]
    lines += ["| method | network | precision | distance |", "|---|---|---|---|"]
    lines += [
      f"| {row['method']} | {row['network']} | {row['precision']} | {row['distance']:.1e} |"
      for row in parts["numbers"]
    ]
  for row in parts.get("resume", ()):
    lines += ["", f"Killed after step {row['killed_after_step']} and started again: parameters "]
    lines[-1] += f"differ by at most {row['largest_difference']:.1e}."
  rows = [(name, row) for name in gpu_cases.CASES for row in parts.get(name, ())]
  if rows:
    lines += [
      "",
      "`ratio` is this project's fastest variant's time for a picture over PyTorch's. TFLOP/s "
      "counts convolutions and products of the pass there and, in training, of one pass back; its "
      "share is that of the best matrix product here.",
      "",
    ]
    columns = ("what", "by", "pictures a run", "ms", "pictures a second", "ratio", "TFLOP/s")
    lines += [f"| {' | '.join((*columns, 'share', 'peak, GiB'))} |", "|---" * 9 + "|"]
    best = max(row.get("tflops", 0) for _, row in rows)
    lines += [_line(name, row, best) for name, row in rows]
  if built := result["built"]:
    lines += ["", f"Seconds to build for the first time, {BUILDERS} processes at once:", ""]
    lines += [f"- {name}: {seconds:.0f}" for name, seconds in built.items()]
  lines += [f"\n{name}: failed, {error}" for name, error in result["failed"].items()]
  return "\n".join(lines) + "\n"


def _line(name: str, row: dict[str, Any], best: float) -> str:
  start = f"| {name} | {row['framework']}, {row['variant']} | {row['rows']} | "
  if "error" in row:
    return f"{start}{row['error'].replace('|', ' ')} |" + " - |" * 5
  ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
  peak = f"{row['peak_gib']:.1f}" if row["peak_gib"] else "-"
  times = f"{1e3 * row['seconds']:.2f} | {row['rows'] / row['seconds']:,.0f}"
  return f"{start}{times} | {ratio} | {row['tflops']:.3g} | {row['tflops'] / best:.1%} | {peak} |"


def device_name() -> tuple[str, str]:
  """(cuda or cpu, the device's name), asked in a process of its own: this one holds no device."""
  code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
  command = [sys.executable, "-c", code]
  said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
  platform, name = said.split("|")
  return ("cpu" if platform == "cpu" else "cuda"), name


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="write gpu_NAME.{md,json} there")
  parser.add_argument("--parts", nargs="+", help="these alone", metavar="PART")
  parser.add_argument("--quick", action="store_true", help="tiny networks, one round")
  parser.add_argument("--directions", help="for the processes that it starts, like --few and --to")
  parser.add_argument("--few", action="store_true")
  parser.add_argument("--to", type=pathlib.Path)
  args = parser.parse_args()
  if args.directions:
    directions(args.directions, args.few, args.to)
    return
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks on one GPU
  cache = tempfile.mkdtemp()
  os.environ |= {"JAX_COMPILATION_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch"}
  atexit.register(shutil.rmtree, cache, ignore_errors=True)
  device, name = device_name()
  cases = gpu_cases.SMALL if args.quick else gpu_cases.CASES
  rounds = 1 if args.quick else ROUNDS
  timed = lambda case: lambda: speed(case, device, rounds)
  parts: dict[str, Callable[[], Any]] = {
    "numbers": lambda: numbers(args.quick),
    "resume": lambda: resume(args.quick),
    **{title: timed(case) for title, case in cases.items()},
  }
  if unknown := set(args.parts or ()) - set(parts):
    parser.error(f"{min(unknown)!r} is no part; use one of {', '.join(map(repr, parts))}")
  result = _earlier(args.out, name)
  result["commands"].append(shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]))
  chosen = [title for title in parts if title in (args.parts or parts)]
  with futures.ThreadPoolExecutor(2) as pool, futures.ThreadPoolExecutor(BUILDERS) as builders:
    untimed = pool.map(
      lambda title: _do(title, parts[title], result), [t for t in chosen if t not in cases]
    )
    both = [(t, "ours") for t in chosen if t in cases]
    both += [(t, "torch") for t in chosen if t in cases and cases[t].torch_rows]
    seconds = builders.map(lambda one: built(cases[one[0]], one[1], device), both)
    for (title, framework), found in zip(both, seconds, strict=True):
      result["built"] |= {f"{title}: {framework}, {name}": s for name, s in found.items()}
    list(untimed)
  _write(args.out, result)
  for title in [title for title in chosen if title in cases]:
    _do(title, parts[title], result)
    _write(args.out, result)
  print(markdown(result))
  sys.exit(bool(result["failed"]))


def _do(title: str, part: Callable[[], Any], result: dict[str, Any]) -> None:
  """Adds what a part finds, or why it found nothing: the parts after it go on."""
  begin = time.perf_counter()
  try:
    result["parts"][title] = part()
  except Exception as error:
    traceback.print_exc()
    result["failed"][title] = f"{type(error).__name__}: {error}"
  print(f"{title}: {time.perf_counter() - begin:.0f} s", flush=True)


def _earlier(out: pathlib.Path | None, device: str) -> dict[str, Any]:
  """What a run on this device wrote before, with the same packages; else nothing."""
  packages = siss_step.environment()
  del packages["load_before"]
  new = {"device": device, "environment": packages, "commands": [], "parts": {}, "built": {}}
  path = out and out / f"{_name(device)}.json"
  if path and path.is_file():
    old = json.loads(path.read_text())
    if old["environment"] == new["environment"]:
      new = old
  return new | {"failed": {}}


def _write(out: pathlib.Path | None, result: dict[str, Any]) -> None:
  pages.write(out, _name(result["device"]), result, markdown(result))


def _name(device: str) -> str:
  return f"gpu_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}"


if __name__ == "__main__":
  main()
