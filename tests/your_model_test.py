"""A model owner's path: weights of diffusers, a folder of pictures, a request, and back."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from jaxunlearn import weights

ROOT = pathlib.Path(__file__).parents[1]
SIZE = 16
UNET = {
  "sample_size": SIZE,
  "in_channels": 3,
  "out_channels": 3,
  "block_out_channels": [8, 16],
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
  "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "norm_eps": 1e-6,
  "downsample_padding": 0,
}
SETTINGS = {
  "data.size": SIZE,
  "train.steps": 2,
  "train.batch": 4,
  "train.micro_batches": 2,
  "eval.samples": 4,
  "eval.batch": 4,
  "eval.steps": 2,
  "eval.inject_t": 2,
  "eval.inject_n": 2,
  "eval.nll_tolerance": 0.1,
}


def save_pictures(folder):
  """Ten pictures, not square, and a copy of one of them in another place."""
  (folder / "cat").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(10):
    pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "cat" / f"{i:04d}.png")
  (folder / "copy.png").write_bytes((folder / "cat" / "0003.png").read_bytes())


def launch(module, *flags):
  done = subprocess.run(
    [sys.executable, "-m", module, *flags],
    cwd=ROOT,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},  # one device, as a user has
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_from_diffusers_and_back(tmp_path):
  torch.manual_seed(0)
  DDPMPipeline(UNet2DModel(**UNET), DDPMScheduler()).save_pretrained(tmp_path / "base")
  save_pictures(tmp_path / "pictures")
  digest = weights.sha256(tmp_path / "pictures" / "copy.png")
  flags = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
  launch(
    "jaxunlearn.main",
    "--config=configs/siss_folder.py",
    f"--workdir={tmp_path / 'run'}",
    f"--config.init_from={tmp_path / 'base'}",
    f"--config.data.path={tmp_path / 'pictures'}",
    f"--config.forget.ids=('sha256:{digest}',)",
    *flags,
  )
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  assert config["model"]["name"] == "unet" and config["model"]["downsample_padding"] == 0
  results = json.loads((tmp_path / "run" / "results.json").read_text())
  assert set(results["before"]) == set(results["after"]) == {"copy_score", "target_rate", "nll_bpd"}

  launch("jaxunlearn.export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
  pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
  assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, SIZE, SIZE, 3)
  before = UNet2DModel.from_pretrained(tmp_path / "base", subfolder="unet").state_dict()
  after = UNet2DModel.from_pretrained(tmp_path / "out").state_dict()
  assert before.keys() == after.keys()
  moved = [float((before[name] - after[name]).abs().max()) for name in before]
  assert 0 < max(moved) < 1e-3
  card = (tmp_path / "out" / "README.md").read_text()
  assert digest in card and "siss" in card.lower()
