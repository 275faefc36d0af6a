"""The time of `make demo` after the install: a first launch, and a second with what it kept.

  python -m benchmarks.demo --out=results     (4 minutes on 2 idle cores)
  python -m benchmarks.demo --quick           (a smoke test: one step, few samples)

A launch is `python -m jaxunlearn.main --config=configs/siss_mnist.py` in a process of its own. The
first finds no compiled program, the second those that the first kept. Compiling is the time in
which at least one program was compiled, or loaded from where it is kept; tracing is not in it.
"""

import argparse
import json
import os
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import pages
from benchmarks.siss_step import environment
from benchmarks.turns import measure

CONFIG = str(pathlib.Path(__file__).parents[1] / "configs" / "siss_mnist.py")
QUICK = (
  "--config.train.steps=1",
  "--config.train.batch=8",
  "--config.eval.samples=8",
  "--config.eval.batch=8",
  "--config.eval.metrics=('target_rate',)",
  "--config.eval.steps=2",
)
LAUNCH = "from benchmarks import demo; demo.launch()"
EVENT = "backend_compile_duration"


def launch() -> None:
  """A run as the flags say; writes the seconds of compiling to the file that COMPILING names."""
  import jax

  from jaxunlearn import main as run

  spans: list[tuple[float, float]] = []

  def listen(event: str, seconds: float, **_: Any) -> None:
    if event.endswith(EVENT):
      spans.append((time.perf_counter() - seconds, time.perf_counter()))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    run.start()
  finally:
    pathlib.Path(os.environ["COMPILING"]).write_text(json.dumps([len(spans), covered(spans)]))


def covered(spans: Iterable[tuple[float, float]]) -> float:
  """The length of a union of intervals."""
  total, reached = 0.0, float("-inf")
  for begin, end in sorted(spans):
    total += max(0.0, end - max(begin, reached))
    reached = max(reached, end)
  return total


def timed(root: pathlib.Path, workdir: str, flags: Sequence[str]) -> dict[str, Any]:
  told = root / "compiling.json"
  env = {**os.environ, "JAXUNLEARN_CACHE": str(root / "cache"), "COMPILING": str(told)}
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  command = ["python", "-c", LAUNCH, f"--config={CONFIG}", f"--workdir={root / workdir}", *flags]
  found = measure(shlex.join(command), env)
  programs, compiling = json.loads(told.read_text())
  taken = {key: found[key] for key in ("seconds", "peak_gib")}
  return {**taken, "programs": programs, "compiling": compiling}


def markdown(result: dict[str, Any]) -> str:
  launches = result["launches"]
  lines = [
    "# The demo, after the install",
    "",
    pages.made(result["command"], result["environment"]),
    "",
    "| launch | seconds | programs | compiling or loading them, s | peak memory, GiB |",
    "|---|---|---|---|---|",
  ]
  for name, row in launches.items():
    cells = (f"{row['seconds']:.0f}", row["programs"], f"{row['compiling']:.1f}")
    lines.append(f"| {name} | {' | '.join(map(str, cells))} | {row['peak_gib']:.1f} |")
  share = launches["second"]["compiling"] / launches["first"]["compiling"]
  said = f"In the second launch compiling takes {share:.0%} of what it takes in the first."
  return "\n".join([*lines, "", said]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--out", type=pathlib.Path, help="write demo.{md,json} there")
  args = parser.parse_args(argv)
  flags = QUICK if args.quick else ()
  result: dict[str, Any] = {
    "command": " ".join(["python -m benchmarks.demo", *(sys.argv[1:] if argv is None else argv)]),
    "environment": environment(),
  }
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    result["launches"] = {name: timed(root, name, flags) for name in ("first", "second")}
  page = markdown(result)
  print(page)
  pages.write(args.out, "demo", result, page)


if __name__ == "__main__":
  main()
