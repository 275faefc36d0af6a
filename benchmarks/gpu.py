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
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent import futures
from typing import Any

from benchmarks import gpu_cases, gpu_numbers, gpu_speed, pages, siss_step

BUILDERS = 4  # processes at once


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
  args = parser.parse_args()
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks on one GPU
  cache = tempfile.mkdtemp()
  os.environ |= {"JAX_COMPILATION_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch"}
  atexit.register(shutil.rmtree, cache, ignore_errors=True)
  device, name = device_name()
  cases = gpu_cases.SMALL if args.quick else gpu_cases.CASES
  rounds = 1 if args.quick else gpu_speed.ROUNDS
  timed = lambda case: lambda: gpu_speed.speed(case, device, rounds)
  parts: dict[str, Callable[[], Any]] = {
    "numbers": lambda: gpu_numbers.numbers(args.quick),
    "resume": lambda: gpu_numbers.resume(args.quick),
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
    seconds = builders.map(lambda one: gpu_speed.built(cases[one[0]], one[1], device), both)
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
