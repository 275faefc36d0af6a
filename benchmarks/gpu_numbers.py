"""Whether a GPU computes what a CPU does, and goes on as if it had not been killed (gpu.py).

python -m benchmarks.gpu_numbers --directions=PRECISION --to=FILE [--few]   (gpu.py starts these)
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
PRECISIONS = {"float32": "highest", "TF32": "tensorfloat32", "bfloat16": None}
FEW = ("denoising", "siss", "neggrad_retain")  # that are stepped in every precision
KILLED = (
  "--config.train.steps=24",
  "--config.train.checkpoint_every=6",
  "--config.eval.metrics=()",
)
KILLED += ("--config.eval.before=False", "--config.eval.after=False", "--config.train.log_every=1")
SAME = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}  # sums in one order


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
  command = [sys.executable, "-m", "benchmarks.gpu_numbers", f"--to={to}"]
  command += ["--directions", "float32" if where == "cpu" else where, *(["--few"] if few else [])]
  env = os.environ | ({"JAX_PLATFORMS": "cpu"} if where == "cpu" else {})
  subprocess.run(command, check=True, cwd=ROOT, env=env)
  with np.load(to) as npz:
    return dict(npz)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--directions", required=True, choices=PRECISIONS)
  parser.add_argument("--few", action="store_true", help="of few methods, on a UNet")
  parser.add_argument("--to", required=True, type=pathlib.Path)
  args = parser.parse_args()
  directions(args.directions, args.few, args.to)


if __name__ == "__main__":
  main()
