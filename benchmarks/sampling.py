"""Sampling by the embedded models beside diffusers, in fewer steps, and other networks, on a CPU.

  python -m benchmarks.sampling --out=results     (about 12 minutes on 2 idle cores)
  python -m benchmarks.sampling --quick           (a smoke test: one model, two steps)

Both frameworks live in one process and take turns; a ratio is between neighbours in time, and
PyTorch's memory layout is the one that is faster in a trial. Here each core is a device, as in
`jaxunlearn sample`. PyTorch runs diffusers' UNet2DModel under its DDIMScheduler, eagerly; weights
are random there, on which time does not depend. Then: what 15 and 20 steps of DPM-Solver++ cost and
give in place of 50 of DDIM, by the metrics of the models' own classifiers; and a training step of a
U-ViT, a pass of a classifier and of FID's Inception beside PyTorch; and what a likelihood costs.
"""

import argparse
import functools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import gpu_cases, pages, turns
from benchmarks.siss_step import LAYOUTS, environment
from jaxunlearn.mesh import cores

ASSETS = pathlib.Path(__file__).parents[1] / "jaxunlearn" / "assets"
MODELS = ("pretrain_mnist", "pretrain_digits_clothes", "pretrain_fashion")
MODELS += ("pretrain_emoji", "pretrain_styles")
SHOWN = {"pretrain_mnist": "digits", "pretrain_emoji": "emoji"}  # pictures, and their classifier
STEPS = {1: 50, 16: 20, 64: 10, 256: 5}  # batch -> steps of a timed run
SAMPLERS = {"DDIM, 50 steps": ("ddim", 50), "DPM-Solver++, 20 steps": ("dpm", 20)}
SAMPLERS |= {"DPM-Solver++, 15 steps": ("dpm", 15)}
METRICS = ("inception_score", "feature_fid")
UVIT = {"sample_size": 32, "patch_size": 2, "width": 256, "depth": 6, "heads": 4}
TINY = UVIT | {"sample_size": 8, "width": 16, "depth": 2, "heads": 2}
ROUNDS, SAMPLES, TRAINED, JUDGED, DESCRIBED = 5, 1024, 16, 256, 16
# How the likelihood is found: the protocol, the tolerance of its steps, and Hutchinson's probes.
FLOWS = [("interpolated", 1e-3, n) for n in (1, 8, 32)]
FLOWS += [("interpolated", 1e-5, 8), ("siss", 1e-5, 8)]
Run = Callable[[], Any]


def ours(name: str, batch: int, steps: int) -> Run:
  """DDIM samples of an embedded model, compiled; of conditional ones under conditions in turn."""
  import jax

  from jaxunlearn import library

  net, params, process = library.load_pretrained(f"assets:{name}")
  eps_fn = library.over_devices(library.eps_fn(process.predictor(net.apply), params))
  shape = (batch, *net.image_shape)
  columns = [np.arange(batch) % n for n in net.classes]
  c = np.stack(columns, axis=1) if len(columns) > 1 else columns[0] if columns else None
  draw = lambda: library.sample(eps_fn, process, jax.random.key(0), shape, c, steps=steps)
  return lambda: jax.block_until_ready(draw())


def theirs(name: str, batch: int, steps: int, layout: str) -> Run:
  """The same by diffusers; two vocabularies of conditions are one there."""
  import diffusers
  import torch

  from benchmarks import torch_reference

  fields = json.loads((ASSETS / name / "config.json").read_text())
  count = math.prod(fields.get("jaxunlearn_classes", (0,)))
  fields = {k: v for k, v in fields.items() if not k.startswith(("_", "jaxunlearn_"))}
  unet: Any = diffusers.UNet2DModel(**fields, num_class_embeds=count or None)
  unet.to(memory_format=getattr(torch, layout)).eval()
  labels = torch.arange(batch) % count if count else None
  scheduler = diffusers.DDIMScheduler()
  scheduler.set_timesteps(steps)
  side = fields["sample_size"]
  noise = torch.randn(batch, fields["in_channels"], side, side)
  noise = noise.contiguous(memory_format=getattr(torch, layout))

  return lambda: torch_reference.ddim(unet, scheduler, noise, labels)


def uvit_ours(fields: Mapping[str, Any], rows: int) -> Run:
  return gpu_cases.ours(gpu_cases.Case("denoise", fields, rows, 0, {"net": "uvit"}), "float32")


def uvit_theirs(fields: Mapping[str, Any], rows: int, layout: str) -> Run:
  case = gpu_cases.Case("denoise", fields, 0, rows, {"net": "uvit"})
  return gpu_cases.theirs(case, "cpu", half=False, compiled=False, last=layout == LAYOUTS[1])


def classifier_ours(rows: int) -> Run:
  """Logits and features of digits by the embedded classifier, as metrics ask for them."""
  from jaxunlearn.evals import classifiers

  judge, images = classifiers.load("digits"), pictures("digits", rows)
  return lambda: judge.features(images)


def classifier_theirs(rows: int, layout: str) -> Run:
  """The same layers in PyTorch."""
  import torch
  from torch import nn

  conv = lambda a, b: [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
  halve = nn.MaxPool2d(2)
  body = [*conv(1, 16), halve, *conv(16, 32), halve, *conv(32, 64), nn.Flatten()]
  net = nn.Sequential(*body, nn.Linear(64 * 49, 64), nn.ReLU(), nn.Linear(64, 10))
  net.to(memory_format=getattr(torch, layout))
  images = torch.from_numpy(pictures("digits", rows)).permute(0, 3, 1, 2)
  images = images.contiguous(memory_format=getattr(torch, layout))

  def run() -> Any:
    with torch.no_grad():
      return net(images).numpy()

  return run


def inception_ours(state: Mapping[str, np.ndarray], images: np.ndarray) -> Run:
  """FID's features of images of 299 px, in [-1, 1]."""
  from jaxunlearn.mesh import sharding
  from jaxunlearn.models import inception
  from jaxunlearn.weights import extractors

  params = sharding.everywhere(extractors.inception(state))
  return lambda: np.asarray(inception.features(params, sharding.beside(params, images)))


def inception_theirs(state: Mapping[str, np.ndarray], images: np.ndarray, layout: str) -> Run:
  """The same by pytorch-fid's network."""
  import torch

  from tests import torchvision_ops

  torchvision_ops.load()
  from pytorch_fid import inception

  head = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
  read = {name: torch.tensor(value) for name, value in state.items()}
  inception.load_state_dict_from_url = lambda url, progress: read | head
  net = inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
  net.to(memory_format=getattr(torch, layout))
  rows = torch.from_numpy(images).permute(0, 3, 1, 2)
  rows = rows.contiguous(memory_format=getattr(torch, layout))

  def run() -> Any:
    with torch.no_grad():
      return net(rows)[0].numpy()

  return run


def likelihoods(name: str, flows: Sequence[tuple[str, float, int]]) -> list[dict[str, Any]]:
  """The T-shirt's NLL by an embedded model: its value, interval over probes, and seconds."""
  import jax

  from jaxunlearn import library
  from jaxunlearn.evals import nll, statistics

  net, params, process = library.load_pretrained(f"assets:{name}")
  eps_fn = library.over_devices(library.eps_fn(process.predictor(net.apply), params))
  with np.load(ASSETS / "digits.npz") as npz:
    x = (npz["tshirt"][None, ..., None] / 127.5 - 1).astype(np.float32)
  rows = []
  for protocol, tolerance, probes in flows:
    how = {"tolerance": tolerance, "protocol": protocol}
    find = lambda seed, n=probes, how=how: nll.nll_bits(
      eps_fn, process, jax.random.key(seed), x, n, **how
    )
    bits, solver = find(0)
    spent = min(turns.seconds(lambda find=find: find(0)) for _ in range(2))
    row = {"solver": solver, "tolerance": tolerance, "probes": probes, "seconds": spent}
    ends = statistics.mean_interval(bits[0]) if probes > 1 else None
    rows.append({**row, "value": float(bits.mean()), "ci95": ends})
  return rows


def pictures(name: str, count: int = 0) -> np.ndarray:
  """Embedded pictures in [-1, 1], [N, H, W, C]: all, or so many in turn."""
  with np.load(ASSETS / f"{name}.npz") as npz:
    image = npz["image"]
  image = image.reshape(-1, 32, 32, 3) if name == "emoji" else image[..., None]
  chosen = image[np.arange(count) % len(image)] if count else image
  return (chosen / 127.5 - 1).astype(np.float32)


def beside(mine: Run, other: Callable[[str], Run], rounds: int) -> dict[str, Any]:
  """turns.in_turn with PyTorch in the memory layout that is the faster one of two trials."""
  runs = {layout: other(layout) for layout in LAYOUTS}
  for run in runs.values():
    run()
  layout = min(runs, key=lambda name: min(turns.seconds(runs[name]) for _ in range(2)))
  return {"layout": layout, **turns.in_turn(mine, runs[layout], rounds)}


def in_fewer_steps(name: str, samples: int) -> list[dict[str, Any]]:
  """Each sampler's time a picture and the metrics of its samples, with their intervals."""
  import jax

  from jaxunlearn import library

  net, params, process = library.load_pretrained(f"assets:{name}")
  eps_fn = library.over_devices(library.eps_fn(process.predictor(net.apply), params))
  rows = []
  for label, (sampler, steps) in SAMPLERS.items():
    shape = (min(samples, library.BATCH), *net.image_shape)
    how = {"sampler": sampler, "steps": steps}
    made = functools.partial(library.sample, eps_fn, process, jax.random.key(0), shape, **how)
    draw = lambda made=made: jax.block_until_ready(made())
    draw()
    spent = min(turns.seconds(draw) for _ in range(2)) / shape[0]
    options = {"reference": pictures(SHOWN[name]), "classifier": SHOWN[name]}
    found = library.measure(METRICS, eps_fn, process, samples=samples, **how, **options)
    values = {k: {"value": v.value, "ci95": v.ci95} for k, v in found.items() if k in METRICS}
    rows.append({"model": name, "sampler": label, "ms_a_picture": 1e3 * spent, **values})
  return rows


def markdown(result: Mapping[str, Any]) -> str:
  lines = [
    "# Sampling beside diffusers, in fewer steps, and other networks",
    "",
    f"{pages.made(result['command'], result['environment'], pages.BOTH)} Medians "
    f"of {result['rounds']} rounds in turn, float32; pictures a second at 50 steps of DDIM.",
    "",
    "| model | batch | ours, pictures/s | PyTorch, pictures/s | time over PyTorch's (min to max) |",
    "|---|---|---|---|---|",
  ]
  for row in result["sampling"]:
    rate = lambda spent, row=row: f"{row['batch'] * row['steps'] / (50 * spent):.3g}"
    lines.append(
      f"| {row['model']} | {row['batch']} | {rate(row['ours'])} | {rate(row['pytorch'])} "
      f"| {_ratio(row)} |"
    )
  head = " | ".join(name.replace("_", " ") for name in METRICS)
  lines += ["", f"Of {result['samples']} samples, with 95% intervals:", ""]
  lines += [f"| model | sampler | ms a picture | {head} |", "|---|---|---|---|---|"]
  for row in result["samplers"]:
    cells = " | ".join(_value(row[name]) for name in METRICS)
    lines.append(f"| {row['model']} | {row['sampler']} | {row['ms_a_picture']:.1f} | {cells} |")
  lines += [
    "",
    "| beside PyTorch | ours, s | PyTorch, s | ratio (min to max) |",
    "|---|---|---|---|",
  ]
  for row in result["others"]:
    lines.append(f"| {row['what']} | {row['ours']:.4f} | {row['pytorch']:.4f} | {_ratio(row)} |")
  lines += ["", "The NLL of the T-shirt, bits/dim, with the interval over probes:", ""]
  lines += ["| solver | tolerance | probes | s | NLL |", "|---|---|---|---|---|"]
  for row in result["likelihoods"]:
    cells = f"{row['tolerance']:.0e} | {row['probes']} | {row['seconds']:.2f} | {_value(row)}"
    lines.append(f"| {row['solver']} | {cells} |")
  return "\n".join(lines) + "\n"


def _ratio(row: Mapping[str, Any]) -> str:
  low, high = row["range"]
  return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _value(entry: Mapping[str, Any]) -> str:
  ends = entry["ci95"]
  return f"{entry['value']:.3g}" + (f" ({ends[0]:.3g} to {ends[1]:.3g})" if ends else "")


def others(fields: Mapping[str, Any], described: int, rounds: int) -> list[dict[str, Any]]:
  """A U-ViT's training step, a classifier's pass, and that of FID's Inception."""
  from tests import random_inception

  train = beside(
    uvit_ours(fields, TRAINED), lambda layout: uvit_theirs(fields, TRAINED, layout), rounds
  )
  judged = beside(classifier_ours(JUDGED), lambda layout: classifier_theirs(JUDGED, layout), rounds)
  state = random_inception.state_dict()
  images = np.random.default_rng(0).uniform(-1, 1, (described, 299, 299, 3)).astype(np.float32)
  features = beside(
    inception_ours(state, images), lambda layout: inception_theirs(state, images, layout), rounds
  )
  size = f"{fields['width']} wide, {fields['depth']} deep, {fields['sample_size']} px"
  return [
    {"what": f"a training step of a U-ViT, {size}, batch {TRAINED}", **train},
    {"what": f"the digit classifier on {JUDGED} pictures", **judged},
    {"what": f"FID's Inception on {described} pictures of 299 px", **features},
  ]


def main(argv: Sequence[str] | None = None) -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="the folder of the results; else printed")
  parser.add_argument("--quick", action="store_true", help="one model, two steps, a tiny U-ViT")
  parser.add_argument("--rounds", type=int, default=ROUNDS)
  args = parser.parse_args(argv)
  cores.as_devices()
  names, batches, rounds, samples = MODELS, STEPS, args.rounds, SAMPLES
  fields, described, flows = UVIT, DESCRIBED, FLOWS
  if args.quick:
    names, batches, rounds, samples = names[:1], {1: 2, 2: 2}, 1, 16
    fields, described, flows = TINY, 2, FLOWS[:1]
  where, rows = environment(), []
  for name in names:
    for batch, steps in batches.items():
      mine = ours(name, batch, steps)
      turn = beside(mine, lambda layout, a=(name, batch, steps): theirs(*a, layout), rounds)
      rows.append({"model": name, "batch": batch, "steps": steps, **turn})
      print(rows[-1], file=sys.stderr, flush=True)
  result = {
    "command": "python -m benchmarks.sampling --out=results",
    "environment": where,
    "rounds": rounds,
    "samples": samples,
    "sampling": rows,
    "samplers": [row for n in names if n in SHOWN for row in in_fewer_steps(n, samples)],
    "others": others(fields, described, rounds),
    "likelihoods": likelihoods("pretrain_mnist", flows),
  }
  print(markdown(result))
  pages.write(args.out, "benchmark_sampling", result, markdown(result))


if __name__ == "__main__":
  main()
