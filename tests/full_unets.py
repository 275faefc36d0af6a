"""The published UNets at their full size equal diffusers' in PyTorch, output and gradients.

  python -m tests.full_unets --out=results

unet_test.py has the same at a quarter of the channels. This takes some minutes and 7 GB.
"""

import argparse
import json
import pathlib
import time

import diffusers
import torch

from jaxunlearn.models import unet
from jaxunlearn.reports import writer
from jaxunlearn.weights import pretrained
from tests import tiny_unet, unet_parity

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
CELEBAHQ = unet_parity.DDPM | {  # google/ddpm-celebahq-256, whose attention is over 4x4 at 64 px
  "sample_size": 64,
  "block_out_channels": (128, 128, 256, 256, 512, 512),
  "down_block_types": (*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
}
UNETS = {  # name: (config, the times of the rows, the parameters)
  "mnist": (MNIST, (13, 700), 14_735_745),
  "cifar10": (unet_parity.CIFAR10, (5, 999), 35_746_307),
  "celebahq at 64 px": (CELEBAHQ, (421,), 113_673_219),
}


def check(config, t, classes=(), c=None, model=diffusers.UNet2DModel) -> dict[str, float]:
  """The distances from diffusers' of the output and, at most, of a gradient; raises beyond 1e-5."""
  net = unet.Net(**config, classes=classes)
  torch.manual_seed(0)
  model = unet_parity.unlike_new(model(**config))
  state = {name: leaf.numpy().copy() for name, leaf in model.state_dict().items()}
  params = pretrained.from_state_dict(state, tiny_unet.shapes(net))
  assert pretrained.to_state_dict(params).keys() == state.keys()
  apply = lambda params, x, t: net.apply(params, x, t, c)
  return unet_parity.check(apply, params, pretrained.to_state_dict, model, net.image_shape, t)


def table(rows: list[dict]) -> str:
  """The measurements as Markdown."""
  line = "| {name} | {parameters:,} | {output:.1e} | {gradient:.1e} |\n"
  head = "| UNet | parameters | output | worst gradient leaf |\n|---|---:|---:|---:|\n"
  return (
    "Relative distances from diffusers' UNet in PyTorch, float64; ours is float32 on a CPU.\n"
    f"Written by `python -m tests.full_unets --out=results`.\n\n{head}"
    + "".join(line.format(**row) for row in rows)
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, help="a folder for full_unets.md and .json")
  args = parser.parse_args()
  rows = []
  for name, (config, t, parameters) in UNETS.items():
    began = time.monotonic()
    rows.append({"name": name, "parameters": parameters, **check(config, t)})
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
  print(table(rows))
  if args.out:
    writer.replace(args.out / "full_unets.md", table(rows))
    writer.replace(args.out / "full_unets.json", json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  main()
