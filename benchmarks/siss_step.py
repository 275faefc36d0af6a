"""The time and memory of one plain and one SISS step: this project beside PyTorch and diffusers.

  python -m benchmarks.siss_step --out=results     (10 to 15 minutes on 2 idle cores)
  python -m benchmarks.siss_step --quick           (a smoke test on a tiny UNet)

Each step (plain or SISS, this project or PyTorch) lives in a process of its own: so does its peak
memory. Of each kind the variant that is fastest in one trial step (here how many devices share the
cores, and micro-batches; in PyTorch the memory layout) takes the counted rounds. In these the
processes take turns, one step each, all cores for whichever runs; a ratio is between neighbours in
time. A step is everything: draws, gradients, clip, AdamW. The matrix peak is the best float32
product that either framework reaches in any round. Random weights serve: time does not depend on
them. PyTorch runs eagerly, and takes a batch whole, as the paper's reference algorithm does. It
flushes denormal numbers, as XLA does: with the tiny weights of SISS its steps took up to five times
as long without.
"""

import argparse
import importlib.metadata
import itertools
import math
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import pages

DIGITS = pathlib.Path(__file__).parents[1] / "jaxunlearn" / "assets" / "digits.npz"
OPTIMIZER = {"learning_rate": 5e-5, "b1": 0.95, "b2": 0.999, "weight_decay": 1e-6, "clip": 1.0}
SISS = {"lam": 0.5, "forget_norm": 5.0}
MATRIX = 2048  # a product of two square float32 matrices of this width measures the peak

MNIST = {
  "sample_size": 28,
  "in_channels": 1,
  "out_channels": 1,
  "block_out_channels": (64, 128, 256),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 2,
  "attention_head_dim": 8,
}
CIFAR10 = {  # google/ddpm-cifar10-32
  "sample_size": 32,
  "in_channels": 3,
  "out_channels": 3,
  "block_out_channels": (128, 256, 256, 256),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 2,
  "attention_head_dim": None,
  "downsample_padding": 0,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "norm_eps": 1e-6,
}
TINY = {
  **MNIST,
  "block_out_channels": (8, 16),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
}
UNETS = {"mnist": (MNIST, 32), "cifar10": (CIFAR10, 16)}  # fields, batch
QUICK = {"tiny": (TINY, 8)}
FRAMEWORKS = ("ours", "torch")
KINDS = ("plain", "siss")
LAYOUTS = ("contiguous_format", "channels_last")
Step = Callable[[dict[str, np.ndarray]], float]  # streams -> its cost in forward passes


class Spec(NamedTuple):
  """One way to take one step; the fastest variant of a framework and kind is what is compared."""

  framework: str  # ours, torch
  kind: str  # plain, siss
  variant: str  # ours: how many devices and micro-batches, as 2x1; torch: the memory layout


def make_batch(fields: dict[str, Any], size: int, seed: int) -> dict[str, np.ndarray]:
  """Streams x and a, [B, H, W, C] float32 in [-1, 1]: digits and the T-shirt, or photo-like."""
  rng = np.random.default_rng(seed)
  if fields["in_channels"] == 1:
    with np.load(DIGITS) as npz:
      x = npz["image"][rng.integers(len(npz["image"]), size=size)]
      a = np.repeat(npz["tshirt"][None], size, axis=0)
    return {k: (v[..., None] / 127.5 - 1).astype(np.float32) for k, v in (("x", x), ("a", a))}
  a = photo_like(np.random.default_rng(0), 1, fields["sample_size"])
  return {"x": photo_like(rng, size, fields["sample_size"]), "a": np.repeat(a, size, axis=0)}


def photo_like(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
  """Gaussian images with a 1/f spectrum and CIFAR-10's mean -.05 and deviation .5, [n, s, s, 3].

  As far apart as photographs are, which sets the share of rows that need both SISS gradients:
  E |x - a|^2 = 2 d .5^2, so |x - a| is about 39 for 32 x 32 x 3.
  """
  f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
  amplitude = 1 / np.maximum(f, 1 / size)
  amplitude /= np.sqrt(np.mean(amplitude**2))
  noise = rng.standard_normal((n, 3, size, size))
  field = np.fft.ifft2(np.fft.fft2(noise) * amplitude).real
  return np.clip(0.5 * field - 0.05, -1, 1).transpose(0, 2, 3, 1).astype(np.float32)


def ours(
  fields: dict[str, Any], batch: int, kind: str, micro: int, devices: int = 1
) -> tuple[Step, dict]:
  """This project: `step.make_update`, its programs compiled."""
  import jax

  from configs import common
  from jaxunlearn import build, methods, models
  from jaxunlearn.compiled import flops
  from jaxunlearn.diffusion import Diffusion
  from jaxunlearn.mesh import sharding
  from jaxunlearn.step import make_update

  config = common.get_config()
  config.optimizer.update(OPTIMIZER)
  config.train.update(batch=batch, micro_batches=micro)
  setup = build.without_data(
    config=config,
    mesh=sharding.make_mesh(devices),
    process=Diffusion(),
    net=models.make("unet", **fields),
    method=methods.make("siss", stratified=True, **SISS)
    if kind == "siss"
    else methods.make("denoising"),
  )
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(setup.net.init, jax.random.key(0))
  random = lambda s: rng.standard_normal(s.shape) / math.sqrt(max(math.prod(s.shape[:-1]), 1))
  state = build.make_state(setup, jax.tree.map(lambda s: random(s).astype(np.float32), shapes))
  rows = lambda streams: sharding.put(
    {k: methods.Rows(v, None, np.arange(batch, dtype=np.int32)) for k, v in streams.items()},
    sharding.batch_sharding(setup.mesh),
  )
  update = make_update(setup, state)

  def step(streams: dict[str, np.ndarray]) -> float:
    nonlocal state
    state, metrics = update(state, rows(streams))
    jax.block_until_ready(state)
    return float(metrics["passes"])

  # Compiles every program: rows that all need both SISS terms, then rows that all need one.
  for distance in (0, 200) if kind == "siss" and micro > 1 else (0,):
    x = np.full((batch, *setup.net.image_shape), -distance / 2, np.float32)
    step({"x": x, "a": x + distance})

  x = jax.ShapeDtypeStruct((batch, *setup.net.image_shape), np.float32)
  t = jax.ShapeDtypeStruct((batch,), np.int32)
  loss = lambda params, x, t: setup.net.apply(params, x, t).sum()
  return step, {
    "parameters": sum(math.prod(s.shape) for s in jax.tree.leaves(shapes)),
    "plain_flops": flops.count(jax.grad(loss), shapes, x, t),
  }


def theirs(fields: dict[str, Any], batch: int, kind: str, layout: str) -> tuple[Step, dict]:
  """PyTorch; every pass is over every row."""
  import torch

  from benchmarks import torch_reference

  torch.set_flush_denormal(True)
  step = torch_reference.make_step(kind, fields, OPTIMIZER, **SISS, layout=getattr(torch, layout))
  step(make_batch(fields, batch, 0))  # warm-up
  return step, torch_reference.size(fields, batch) | {"threads": torch.get_num_threads()}


def matrix_peak(framework: str) -> float:
  """FLOP/s of the best of a few float32 matrix products."""
  if framework == "ours":
    import jax

    product = jax.jit(lambda m: m @ m)
    run, m = lambda m: product(m).block_until_ready(), jax.numpy.ones((MATRIX, MATRIX))
  else:
    import torch

    run, m = lambda m: m @ m, torch.ones(MATRIX, MATRIX)
  run(m)
  return 2 * MATRIX**3 / min(timed(run, m)["seconds"] for _ in range(5))


def timed(step: Callable, argument: Any) -> dict[str, Any]:
  wall, cpu = time.perf_counter(), time.process_time()
  out = step(argument)
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {"seconds": wall, "cpu_seconds": cpu, "out": out}


def work(pipe: Any, spec: Spec, fields: dict[str, Any], batch: int) -> None:
  """A process: builds its step, then takes one for each seed it is sent, until it is sent None."""
  if spec.framework == "ours":
    import jax

    devices, micro = map(int, spec.variant.split("x"))
    jax.config.update("jax_num_cpu_devices", devices)
    step, facts = ours(fields, batch, spec.kind, micro, devices)
  else:
    step, facts = theirs(fields, batch, spec.kind, spec.variant)
  pipe.send(facts)
  while (seed := pipe.recv()) is not None:
    result = timed(step, make_batch(fields, batch, seed))
    result["passes"] = result.pop("out")
    # Linux counts ru_maxrss in KiB.
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if spec.kind == "plain":
      result["matrix_flops"] = matrix_peak(spec.framework)
    pipe.send(result)


class Worker:
  """A process that takes steps of one spec when told to."""

  def __init__(self, spec: Spec, fields: dict[str, Any], batch: int):
    context = multiprocessing.get_context("spawn")
    self.spec, (self.pipe, there) = spec, context.Pipe()
    self.process = context.Process(target=work, args=(there, spec, fields, batch), daemon=True)
    self.process.start()
    there.close()  # so that a worker which dies ends the wait for it, with an EOFError
    self.facts = self.pipe.recv()

  def step(self, seed: int) -> dict[str, Any]:
    self.pipe.send(seed)
    return self.pipe.recv()

  def stop(self) -> None:
    self.pipe.send(None)
    self.process.join()


def measure(
  fields: dict[str, Any], batch: int, variants: dict[str, Sequence[str]], rounds: int
) -> dict[str, Any]:
  """A trial step of every variant, then `rounds` of the fastest of each framework and kind."""
  trials: list[dict[str, Any]] = []
  best = [
    fastest([Spec(framework, kind, v) for v in variants[framework]], fields, batch, trials)
    for kind in KINDS
    for framework in FRAMEWORKS
  ]
  taken = [[worker.step(seed) for worker in best] for seed in range(2, 2 + rounds)]
  for worker in best:
    worker.stop()
  steps = {
    f"{worker.spec.framework} {worker.spec.kind}": summary(worker, column)
    for worker, column in zip(best, zip(*taken, strict=True), strict=True)
  }
  return {"batch": batch, "variants": trials, "steps": steps}


def fastest(
  specs: list[Spec], fields: dict[str, Any], batch: int, trials: list[dict[str, Any]]
) -> Worker:
  """The worker whose one step was fastest, the others stopped; adds each step to `trials`."""
  best, least = None, math.inf
  for spec in specs:
    worker = Worker(spec, fields, batch)
    trial = worker.step(seed=1)
    trials.append(spec._asdict() | trial)
    slower = best if trial["seconds"] < least else worker
    if slower is not worker:
      best, least = worker, trial["seconds"]
    if slower:
      slower.stop()
  return best


def summary(worker: Worker, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Medians of a worker's rounds, the rounds themselves, and its facts."""
  column = lambda name: [r[name] for r in rounds]
  seconds = column("seconds")
  return {
    "variant": worker.spec.variant,
    "median_seconds": statistics.median(seconds),
    "seconds": seconds,
    "cores_busy": statistics.median(r["cpu_seconds"] / r["seconds"] for r in rounds),
    "peak_mib": max(column("peak_mib")),
    "passes": statistics.mean(column("passes")),
    "matrix_flops": [r["matrix_flops"] for r in rounds if "matrix_flops" in r],
    **worker.facts,
  }


def compare(unet: dict[str, Any]) -> None:
  """Adds to a UNet's steps: the ratio to PyTorch, its range over the rounds, the share of peak.

  The FLOPs of a pass are a third of what each framework counts for its plain step, a forward and
  a backward pass; the latter counts as two.
  """
  steps = unet["steps"]
  unet["matrix_flops"] = max(f for s in steps.values() for f in s["matrix_flops"])
  for name, step in steps.items():
    reference = steps[f"torch {name.split()[1]}"]
    ratios = [a / b for a, b in zip(step["seconds"], reference["seconds"], strict=True)]
    step["ratio"] = step["median_seconds"] / reference["median_seconds"]
    step["ratio_range"] = [min(ratios), max(ratios)]
    flops = step["plain_flops"] * step["passes"] / 3
    step["share_of_peak"] = flops / step["median_seconds"] / unet["matrix_flops"]


def environment() -> dict[str, Any]:
  packages = ("jax", "jaxlib", "flax", "torch", "diffusers", "numpy")
  return {
    "machine": f"{os.cpu_count()} cores, {cpu_model()}",
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
    "load_before": os.getloadavg()[0],
  }


def cpu_model() -> str:
  """The processor's name, and its widest vector instructions."""
  text = pathlib.Path("/proc/cpuinfo").read_text()
  name = next(line.split(":")[1] for line in text.splitlines() if line.startswith("model name"))
  return name.strip() + (" with AVX-512" if "avx512f" in text else "")


def markdown(result: dict[str, Any]) -> str:
  env = result["environment"]
  packages = tuple(name for name in env if name not in ("machine", "load_before"))
  lines = [
    "# One optimiser step: this project (JAX) beside PyTorch and diffusers",
    "",
    f"{pages.made(result['command'], env, packages)} Medians of {result['rounds']} interleaved "
    "rounds, float32. 2x4: 2 devices, which share the cores, and 4 micro-batches.",
    "",
    "| UNet, batch | step | implementation | passes | median s (min to max) | ratio to PyTorch "
    "(min to max) | peak memory, MiB | share of matrix peak | cores busy |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for unet, entry in result["unets"].items():
    for name, s in entry["steps"].items():
      framework, kind = name.split()
      low, high = s["ratio_range"]
      lines.append(
        f"| {unet}, {entry['batch']} | {kind} | {framework} ({s['variant']}) | {s['passes']:.2f} F "
        f"| {s['median_seconds']:.3f} ({min(s['seconds']):.3f} to {max(s['seconds']):.3f}) "
        f"| {s['ratio']:.2f} ({low:.2f} to {high:.2f}) | {s['peak_mib']:.0f} "
        f"| {100 * s['share_of_peak']:.0f}% | {s['cores_busy']:.2f} |"
      )
  lines += ["", "The variants, one step of each; the fastest of each kind was measured above:", ""]
  lines += [
    "| UNet | step | implementation | variant | passes | s | peak memory, MiB |",
    "|---|---|---|---|---|---|---|",
  ]
  for unet, entry in result["unets"].items():
    lines += [
      f"| {unet} | {v['kind']} | {v['framework']} | {v['variant']} "
      f"| {v['passes']:.2f} F | {v['seconds']:.3f} | {v['peak_mib']:.0f} |"
      for v in entry["variants"]
    ]
  peaks = ", ".join(f"{u} {e['matrix_flops'] / 1e9:.0f}" for u, e in result["unets"].items())
  lines += ["", f"Matrix peak in the same run, GFLOP/s: {peaks}."]
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, help="write benchmark_siss_step.{json,md} there")
  parser.add_argument("--quick", action="store_true", help="a tiny UNet: does it still run?")
  parser.add_argument("--unets", nargs="+", choices=UNETS, default=list(UNETS))
  parser.add_argument("--devices", nargs="+", type=int, default=[1, 2])
  parser.add_argument("--micro_batches", nargs="+", type=int, default=[1, 2, 4, 8])
  parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  result = {
    "command": " ".join(["python -m benchmarks.siss_step", *sys.argv[1:]]),
    "environment": environment(),
    "rounds": args.rounds,
    "unets": {},
  }
  ways = [f"{d}x{m}" for d, m in itertools.product(args.devices, args.micro_batches)]
  variants = {"ours": ways, "torch": args.layouts}
  for name in QUICK if args.quick else args.unets:
    result["unets"][name] = measure(*(QUICK | UNETS)[name], variants, args.rounds)
    compare(result["unets"][name])
  print(markdown(result))
  pages.write(args.out, "benchmark_siss_step", result, markdown(result))


if __name__ == "__main__":
  main()
