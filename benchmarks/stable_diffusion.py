"""Stable Diffusion in and out at full size, random weights; and a small one's speed beside PyTorch.

  python -m benchmarks.stable_diffusion --out=results     (16 GiB; an hour on 2 idle cores)
  python -m benchmarks.stable_diffusion --quick           (a smoke test on tiny networks)

diffusers and transformers save a StableDiffusionPipeline of version 1's configs and draw a guided
picture from fixed noise; this project reads the folder, draws from the same noise, and writes the
model anew; diffusers reads that and draws once more. Each is a process of its own, whose peak
memory is read from the system when it ends. For the speed both frameworks live in one process and
take turns, on the networks of the little Stable Diffusion; a ratio is between neighbours in time.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import pages
from benchmarks.siss_step import environment
from benchmarks.turns import in_turn

PROMPT, SCALE = "a whale", 7.5
UNET = {
  "sample_size": 64,
  "block_out_channels": (320, 640, 1280, 1280),
  "attention_head_dim": 8,
  "cross_attention_dim": 768,
}
VAE = {
  "sample_size": 512,
  "block_out_channels": (128, 256, 512, 512),
  "layers_per_block": 2,
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
TEXT |= {"num_attention_heads": 12, "max_position_embeddings": 77}
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
FULL = {"unet": UNET, "vae": VAE, "text": TEXT, "merges": 48_894}
TWO = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
TWO |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
SMALL = {  # as large as the little Stable Diffusion
  "unet": UNET
  | {"sample_size": 16, "block_out_channels": (64, 128), "cross_attention_dim": 64}
  | {"layers_per_block": 1, "attention_head_dim": 4, **TWO},
  "vae": VAE
  | {"sample_size": 64, "block_out_channels": (24, 48, 64), "layers_per_block": 1}
  | {"norm_num_groups": 8}
  | {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3},
  "text": TEXT
  | {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
  | {"num_attention_heads": 4, "max_position_embeddings": 32},
  "merges": 3_501,
}
TINY = {
  "unet": SMALL["unet"] | {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4},
  "vae": SMALL["vae"] | {"sample_size": 32, "block_out_channels": (4, 4, 4), "norm_num_groups": 2},
  "text": SMALL["text"],
  "merges": 100,
}
SIZES = {"full": FULL, "small": SMALL, "tiny": TINY}


def save_tokenizer(folder: pathlib.Path, merges: int, length: int) -> int:
  """A tokenizer of as many tokens as CLIP's, of merges of two letters; returns how many."""
  from jaxunlearn.weights.tokenizer import END, START, Tokenizer
  from tests.tiny_pipeline import printable

  letters = printable()
  pairs = [(a, f"{b}</w>") for a in letters for b in letters][:merges]
  tokens = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in pairs)]
  words = {token: i for i, token in enumerate([*tokens, START, END])}
  Tokenizer(folder, words, pairs, length).save(folder)
  return len(words)


def make(size: str, folder: pathlib.Path) -> Any:
  """diffusers' pipeline of that size, random, saved into the folder."""
  import diffusers
  import torch
  import transformers

  from tests.tiny_pipeline import SCHEDULER
  from tests.unet_parity import unlike_new

  fields = SIZES[size]
  words = folder / "words"
  ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
  count = save_tokenizer(words, fields["merges"], fields["text"]["max_position_embeddings"])
  torch.manual_seed(0)
  text = transformers.CLIPTextConfig(**fields["text"], vocab_size=count, **ids)
  pipe = diffusers.StableDiffusionPipeline(
    vae=unlike_new(diffusers.AutoencoderKL(**fields["vae"])),
    text_encoder=unlike_new(transformers.CLIPTextModel(text)),
    tokenizer=transformers.CLIPTokenizer.from_pretrained(words),
    unet=unlike_new(diffusers.UNet2DConditionModel(**fields["unet"])),
    scheduler=diffusers.PNDMScheduler(**SCHEDULER),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )
  pipe.save_pretrained(folder)
  return pipe


def noise(side: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal((1, side, side, 4)).astype(np.float32)


def draw_theirs(pipe: Any, steps: int) -> np.ndarray:
  """The picture [1, H, W, 3] in [0, 1] that diffusers makes of the fixed noise."""
  import torch

  pipe.set_progress_bar_config(disable=True)
  latents = torch.tensor(noise(pipe.unet.config.sample_size).transpose(0, 3, 1, 2))
  given = {"num_inference_steps": steps, "guidance_scale": SCALE, "output_type": "np"}
  with torch.no_grad():
    return pipe(PROMPT, latents=latents, **given).images


def drawer(folder: pathlib.Path, steps: int) -> tuple[Any, Callable[[], np.ndarray]]:
  """The model in the folder, and what draws its picture of the fixed noise."""
  import jax

  from jaxunlearn.diffusion import sampling
  from jaxunlearn.weights import scheduler_config, stable_diffusion

  model = stable_diffusion.load(folder)
  eps_fn, codec = model.eps_fn([PROMPT], SCALE), model.codec
  name, options = scheduler_config.sampler_of(model.sampler, model.scheduler)

  def draw() -> np.ndarray:
    z = sampling.sample(
      eps_fn,
      model.process,
      jax.random.key(0),
      noise(model.unet.sample_size),
      np.zeros(1, np.int32),
      sampler=name,
      steps=steps,
      options=options,
    )
    return np.clip(codec.decode(np.asarray(z)) / 2 + 0.5, 0, 1)

  return model, draw


def part_make(root: pathlib.Path, size: str, steps: int) -> dict[str, Any]:
  pipe = make(size, root / "in")
  counts = {p: sum(w.numel() for w in getattr(pipe, p).parameters()) for p in PARAMETERS}
  begin = time.perf_counter()
  np.save(root / "theirs.npy", draw_theirs(pipe, steps))
  return {"parameters": counts, "picture_seconds": time.perf_counter() - begin}


def part_read(root: pathlib.Path, size: str, steps: int) -> dict[str, Any]:
  del size
  import jax

  from jaxunlearn.weights import stable_diffusion

  model, draw = drawer(root / "in", steps)
  begin = time.perf_counter()
  picture = draw()
  seconds = time.perf_counter() - begin
  stable_diffusion.save(root / "out", model)
  counts = {p: sum(w.size for w in jax.tree.leaves(model.params[p])) for p in PARAMETERS}
  distance = np.abs(picture - np.load(root / "theirs.npy")).max()
  return {"parameters": counts, "picture_seconds": seconds, "largest_difference": float(distance)}


def part_back(root: pathlib.Path, size: str, steps: int) -> dict[str, Any]:
  del size
  import diffusers

  pipe = diffusers.StableDiffusionPipeline.from_pretrained(root / "out")
  counts = {p: sum(w.numel() for w in getattr(pipe, p).parameters()) for p in PARAMETERS}
  begin = time.perf_counter()
  distance = np.abs(draw_theirs(pipe, steps) - np.load(root / "theirs.npy")).max()
  seconds = time.perf_counter() - begin
  return {"parameters": counts, "picture_seconds": seconds, "largest_difference": float(distance)}


PARTS = {"make": part_make, "read": part_read, "back": part_back}
TITLES = {
  "make": "diffusers makes it, saves it and draws",
  "read": "this project reads it, draws and writes it anew",
  "back": "diffusers reads that and draws",
}


def run_part(part: str, root: pathlib.Path, size: str, steps: int) -> dict[str, Any]:
  """A part in a process of its own, with its seconds and peak memory."""
  begin = time.perf_counter()
  argv = [sys.executable, "-m", "benchmarks.stable_diffusion", f"--part={part}", f"--root={root}"]
  child = subprocess.Popen([*argv, f"--size={size}", f"--steps={steps}"])
  _, status, usage = os.wait4(child.pid, 0)
  if status:
    raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), argv)
  found = json.loads((root / f"{part}.json").read_text())
  seconds = time.perf_counter() - begin
  return {"seconds": seconds, "peak_gib": usage.ru_maxrss / 2**20, **found}


def speed(size: str, steps: int, rounds: int) -> dict[str, Any]:
  """Seconds of a forward pass of 2 rows and of a guided picture, ours and PyTorch's in turn."""
  import jax
  import torch

  with tempfile.TemporaryDirectory() as folder:
    pipe = make(size, pathlib.Path(folder))
    model, draw = drawer(pathlib.Path(folder), steps)
  net = model.unet
  x = np.repeat(noise(net.sample_size), 2, axis=0)
  c = np.random.default_rng(1).standard_normal((2, 32, net.cross_attention_dim)).astype(np.float32)
  params = jax.tree.map(jax.numpy.asarray, model.params["unet"])
  forward = jax.jit(net.apply)
  t = np.array([500, 500])
  given = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), torch.tensor(c)

  def theirs() -> None:
    with torch.no_grad():
      pipe.unet(*given)

  pairs = {
    "forward pass of 2 rows": (
      lambda: forward(params, x, t, c).block_until_ready(),
      theirs,
    ),
    f"guided picture, {steps} steps": (draw, lambda: draw_theirs(pipe, steps)),
  }
  return {name: in_turn(*pair, rounds) for name, pair in pairs.items()}


def markdown(result: dict[str, Any]) -> str:
  env = result["environment"]
  parts = result["parts"]
  lines = [
    "# Stable Diffusion in and out, random weights, on CPU",
    "",
    f"`{result['command']}` on {env['machine']}; load before the start: {env['load_before']:.2f}.",
    "",
    f"Networks of version 1; a guided picture of {result['steps']} steps of PLMS from equal noise.",
    "",
    "| process | seconds | of them the picture | peak memory, GiB | largest difference |",
    "|---|---|---|---|---|",
  ]
  for name, part in parts.items():
    far = f"{part['largest_difference']:.1e}" if "largest_difference" in part else "-"
    lines.append(
      f"| {TITLES[name]} | {part['seconds']:.0f} | {part['picture_seconds']:.0f} | "
      f"{part['peak_gib']:.1f} | {far} |"
    )
  counts = parts["read"]["parameters"]
  said = ", ".join(f"{name} {count:,}" for name, count in counts.items())
  lines += ["", f"Parameters: {said}. Differences are of values in [0, 1].", ""]
  lines += ["As large as the little Stable Diffusion, both frameworks in turn:", ""]
  lines += ["| what | ours, s | PyTorch, s | ratio |", "|---|---|---|---|"]
  for name, row in result["speed"].items():
    lines.append(f"| {name} | {row['ours']:.4f} | {row['pytorch']:.4f} | {row['ratio']:.2f} |")
  return "\n".join(lines)


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="write stable_diffusion_cpu.{md,json}")
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--steps", type=int, default=50, help="of the guided picture")
  parser.add_argument("--rounds", type=int, default=5, help="turns of the speed")
  parser.add_argument("--part", choices=PARTS, help="for the processes that it starts")
  parser.add_argument("--root", type=pathlib.Path, help="for those")
  parser.add_argument("--size", choices=SIZES, default="full", help="for those")
  args = parser.parse_args()
  if args.part:
    found = PARTS[args.part](args.root, args.size, args.steps)
    (args.root / f"{args.part}.json").write_text(json.dumps(found))
    return
  size, small = ("tiny", "tiny") if args.quick else ("full", "small")
  result: dict[str, Any] = {
    "command": " ".join(["python -m benchmarks.stable_diffusion", *sys.argv[1:]]),
    "environment": environment(),
    "steps": args.steps,
    "parts": {},
  }
  result["speed"] = speed(small, args.steps, args.rounds)
  with tempfile.TemporaryDirectory() as folder:
    for part in PARTS:
      result["parts"][part] = run_part(part, pathlib.Path(folder), size, args.steps)
      print(f"{TITLES[part]}: {result['parts'][part]['seconds']:.0f} s", flush=True)
  if not args.quick:
    assert all(part["parameters"] == PARAMETERS for part in result["parts"].values())
  text = markdown(result) + "\n"
  print(text)
  pages.write(args.out, "stable_diffusion_cpu", result, text)


if __name__ == "__main__":
  main()
