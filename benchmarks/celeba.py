"""The CelebA-HQ run at full size on this machine: each command of docs/celeba.md, time and memory.

  python -m benchmarks.celeba --out=results     (7 minutes on 2 idle cores, 10 GiB)

Weights and pictures are random: neither time nor memory depends on them. diffusers saves its own
UNet of google/ddpm-celebahq-256; `siss_celeba` takes two steps on an image folder in micro-batches
and evaluates a few samples; the result is exported and loaded by diffusers again. Each command is
a process of its own, whose peak memory is read from the system when it ends.
"""

import argparse
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from benchmarks import pages
from benchmarks.siss_step import environment
from benchmarks.turns import measure
from configs import siss_celeba
from tests import random_inception, random_resnet

PARAMETERS = 113_673_219
IMAGES = 4
MAIN = "python -m jaxunlearn.main --config=configs/siss_celeba.py"


def save_base(folder: pathlib.Path, **changes: Any) -> int:
  """diffusers' own UNet of google/ddpm-celebahq-256, random, in a pipeline's folder; its size."""
  import torch
  from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

  torch.manual_seed(0)
  fields = {k: list(v) if isinstance(v, tuple) else v for k, v in siss_celeba.model().items()}
  unet = UNet2DModel(**fields | changes)
  for name, parameter in unet.named_parameters():
    if "norm" in name:  # diffusers starts them at exactly 0 and 1
      parameter.data += 0.1 * torch.randn_like(parameter)
  DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
  return sum(p.numel() for p in unet.parameters())


def save_images(folder: pathlib.Path) -> None:
  """Smooth colours, about as far apart as faces are, not square."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(IMAGES):
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    small.resize((320, 280), Image.Resampling.BICUBIC).save(folder / f"{10000 + i}.jpg")


def save_extractors(root: pathlib.Path) -> None:
  """Random weights of SSCD's ResNet-50 and of FID's Inception, in their authors' names."""
  safetensors.numpy.save_file(random_resnet.state_dict(), root / "sscd.safetensors")
  safetensors.numpy.save_file(random_inception.state_dict(), root / "inception.safetensors")


def overrides(root: pathlib.Path) -> dict[str, Any]:
  """The flags that make `siss_celeba` two steps of two pictures, and its evaluation two samples."""
  return {
    "init_from": str(root / "base"),
    "data.path": str(root / "images"),
    "train.steps": 2,
    "train.batch": 2,
    "train.micro_batches": 2,
    "train.checkpoint_every": 1,
    "eval.before": False,
    "eval.metrics": ("sscd", "fid"),
    "eval.sscd_weights": str(root / "sscd.safetensors"),
    "eval.inception_weights": str(root / "inception.safetensors"),
    "eval.samples": 2,
    "eval.batch": 2,
    "eval.steps": 2,
    "eval.inject_t": 1,
    "eval.inject_n": 2,
  }


def flags(root: pathlib.Path) -> str:
  return " ".join(f'--config.{name}="{value}"' for name, value in overrides(root).items())


def commands(root: pathlib.Path) -> dict[str, str]:
  """What is done -> its command, in order."""
  load = (
    "from diffusers import DDPMPipeline, UNet2DModel; import torch; "
    f"UNet2DModel.from_pretrained('{root}/out'); "
    f"pipe = DDPMPipeline.from_pretrained('{root}/out'); "
    "pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]"
    f".save('{root}/sample.png')"
  )
  eight = "--config.train.batch=8 --config.train.micro_batches=1 --dry_run"
  base = f'--config.init_from="{root}/base" --config.data.path="{root}/images"'
  return {
    "dry run, micro-batch of 8": f"{MAIN} {base} {eight}",
    "two steps, evaluation": f"{MAIN} --workdir={root}/run {flags(root)}",
    "export": f"python -m jaxunlearn.export --run={root}/run --out={root}/out",
    "diffusers loads it and samples": f'python -c "{load}"',
  }


def markdown(result: dict[str, Any]) -> str:
  env = result["environment"]
  lines = [
    "# The CelebA-HQ run at full size, random weights, on CPU",
    "",
    f"`{result['command']}` on {env['machine']}; load before the start: {env['load_before']:.2f}.",
    "",
    "| command | seconds | peak memory, GiB |",
    "|---|---|---|",
  ]
  for name, stage in result["stages"].items():
    lines.append(f"| {name} | {stage['seconds']:.0f} | {stage['peak_gib']:.1f} |")
  dry_run = next(iter(result["stages"].values()))["output"]
  return "\n".join(
    [*lines, "", "The dry run says, of the run's settings:", "", "```", *dry_run, "```"]
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, required=True, help="write celeba_cpu.{md,json}")
  args = parser.parse_args()
  result = {
    "command": " ".join(["python -m benchmarks.celeba", *sys.argv[1:]]),
    "environment": environment(),
    "stages": {},
  }
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    assert save_base(root / "base") == PARAMETERS
    save_images(root / "images")
    save_extractors(root)
    for name, command in commands(root).items():
      result["stages"][name] = measure(command, folder=folder)
      print(f"{name}: {result['stages'][name]['seconds']:.0f} s", flush=True)
  pages.write(args.out, "celeba_cpu", result, markdown(result) + "\n")


if __name__ == "__main__":
  main()
