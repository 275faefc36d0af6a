"""What Stable Diffusion memorised, found and deleted at full size on this machine: time, memory.

  python -m benchmarks.sd_cpu --out=results     (17 minutes on 2 idle cores, 14 GiB)

Weights are random: neither time nor memory depends on them. diffusers saves a pipeline of version
1's configs; each command of docs/stable_diffusion.md runs on it in a process of its own, with few
pictures and steps: find, two steps of configs/siss_sd.py with a small evaluation, export; diffusers
loads the result and draws. The first step is repeated in PyTorch from the same draws. What is
trained is the attention to text: all of the UNet takes more memory than this machine has
(--trained=all, where there is 40 GiB).
"""

import argparse
import json
import pathlib
import shlex
import sys
import tempfile
import time
from typing import Any

import numpy as np
import safetensors.numpy

from benchmarks import pages, stable_diffusion
from benchmarks.siss_step import environment
from benchmarks.turns import measure
from configs import siss_sd

PROMPT = "a whale"
NAME = "a-whale"
PATTERNS = {"attn2": "attn2", "all": siss_sd.PATTERN}
N = 4  # pictures that are found
SIZES = {"full": 512, "tiny": 32}  # pixels of stable_diffusion's pipelines


def save_extractor(root: pathlib.Path) -> None:
  """Random weights of SSCD's ResNet-50, in its authors' names."""
  from tests import random_resnet

  safetensors.numpy.save_file(random_resnet.state_dict(), root / "sscd.safetensors")


def save_prompts(root: pathlib.Path) -> None:
  (root / "prompts.txt").write_text(f"{PROMPT}\t{PROMPT} ''\n")


def overrides(root: pathlib.Path, size: str, trained: str) -> dict[str, Any]:
  """The flags that make `siss_sd` two steps of two pairs, and its evaluation two pictures."""
  ways = ("kmeans", "radius", "sscd") if size == "full" else ("kmeans", "radius")
  return {
    "init_from": str(root / "base"),
    "data.size": SIZES[size],
    "trained.pattern": PATTERNS[trained],
    "train.steps": 2,
    "train.batch": 2,
    "train.micro_batches": 2,
    "train.checkpoint_every": 1,
    "eval.before": False,
    "eval.every": 0,
    "eval.metrics": ("memorised", "text_noise", "one_step"),
    "eval.probe_metrics": ("memorised",),
    "eval.memorised_by": ways,
    "eval.sscd_weights": str(root / "sscd.safetensors"),
    "eval.samples": 2,
    "eval.batch": 1,
    "eval.steps": 2,
    "eval.prompt_noises": 1,
    "eval.prompt_steps": 2,
  }


def found(root: pathlib.Path) -> pathlib.Path:
  """The data set that the first command writes."""
  return root / "memorised" / NAME


def find_flags(root: pathlib.Path) -> list[str]:
  given = {"from": root / "base", "prompts": root / "prompts.txt", "out": root / "memorised"}
  counts = {"n": N, "steps": 2, "batch": 1, "few": 2}
  return [f"--{name}={value}" for name, value in (given | counts).items()]


def commands(root: pathlib.Path, trained: str) -> dict[str, str]:
  """What is done -> its command, in order."""
  flags = [f"--config.{k}={v}" for k, v in overrides(root, "full", trained).items()]
  load = (
    "from diffusers import StableDiffusionPipeline; "
    f"pipe = StableDiffusionPipeline.from_pretrained('{root}/out'); "
    f"pipe('{PROMPT}', num_inference_steps=2).images[0].save('{root}/sample.png')"
  )
  config = f"--config=configs/siss_sd.py:siss,{found(root)}"
  step = f"--part=step --root={root} --trained={trained}"
  find = shlex.join(find_flags(root))
  return {
    f"find: {N} pictures, 2 steps": f"python -m jaxunlearn.memorised {find}",
    "delete: 2 steps of 2 pairs, and measure": (
      f"python -m jaxunlearn.main {config} --workdir={root}/run {shlex.join(flags)}"
    ),
    "the first step in PyTorch": f"python -m benchmarks.sd_cpu {step}",
    "export": f"python -m jaxunlearn.export --run={root}/run --out={root}/out",
    "diffusers loads it and draws": f'python -c "{load}"',
  }


def config_of(root: pathlib.Path, size: str, trained: str) -> Any:
  """The config of the deletion, as its command makes it."""
  config = siss_sd.get_config(f"siss,{found(root)}")
  config.update_from_flattened_dict(overrides(root, size, trained))
  return config


def step_in_torch(root: pathlib.Path, config: Any) -> dict[str, float]:
  """How far the run's first step is from PyTorch's, by the same draws: see `differences`."""
  import jax

  from jaxunlearn import build, checkpoint
  from jaxunlearn.mesh import sharding
  from jaxunlearn.weights import pretrained

  setup = build.build(config)
  rng = jax.random.fold_in(jax.random.key(config.seed), 0)
  draw = jax.jit(lambda batch: setup.method.draw(setup.process, batch, rng, {}, 0))
  draws = jax.device_get(draw(setup.host_batch(0)))
  prompts = [setup.train.classes[c] for c in draws["c"]]
  before, after = theirs(root / "base", draws, prompts, config)
  whole = jax.eval_shape(setup.net.init, jax.random.key(0))
  shapes = sharding.shaped(setup.mesh, jax.eval_shape(setup.split, whole)[0])
  ours = checkpoint.read_params(root / "run", shapes, step=1)
  return differences(pretrained.to_state_dict(ours["unet"]), before, after)


def theirs(
  folder: pathlib.Path, draws: dict[str, np.ndarray], prompts: list[str], config: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The trained weights before and after a SISS step of diffusers' UNet, a pair at a time."""
  import torch
  from diffusers import StableDiffusionPipeline

  pipe = StableDiffusionPipeline.from_pretrained(folder)
  words = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
  with torch.no_grad():
    states = pipe.text_encoder(words.input_ids)[0]
  unet, scheduler = pipe.unet.train(), pipe.scheduler
  params = {
    n: p for n, p in unet.named_parameters() if config.trained.pattern != "attn2" or "attn2" in n
  }
  before = {name: p.detach().numpy().copy() for name, p in params.items()}
  abar = scheduler.alphas_cumprod.double()
  g_x, g_a = [[torch.zeros_like(p) for p in params.values()] for _ in range(2)]
  nchw = lambda name: torch.from_numpy(np.array(draws[name])).permute(0, 3, 1, 2)
  x, a, noise = (nchw(name) for name in ("x", "a", "eps"))
  for i in range(len(x)):
    t = int(draws["t"][i])
    gamma, sigma = (float(v) for v in (abar[t].sqrt(), (1 - abar[t]).sqrt()))
    m_t = gamma * (a if draws["from_a"][i] else x)[i : i + 1] + sigma * noise[i : i + 1]
    r = gamma / sigma**2 * float(((a - x)[i] * (m_t[0] - gamma * (x + a)[i] / 2)).sum())
    lam = config.method.lam
    w_x = 1 / ((1 - lam) + lam * float(np.exp(min(r, 700))))
    w_a = 1 / ((1 - lam) * float(np.exp(min(-r, 700))) + lam)
    eps = unet(m_t, torch.tensor([t]), states[i : i + 1]).sample
    for w, y, total in ((w_x, x, g_x), (w_a, a, g_a)):
      loss = w * (((m_t - gamma * y[i : i + 1]) / sigma - eps) ** 2).sum() / len(x)
      grads = torch.autograd.grad(loss, list(params.values()), retain_graph=total is g_x)
      for one, grad in zip(total, grads, strict=True):
        one += grad
  c = config.method.forget_norm / torch.nn.utils.get_total_norm(g_a)
  opt = config.optimizer
  for p, keep, forget in zip(params.values(), g_x, g_a, strict=True):
    p.grad = keep - c * forget
  torch.nn.utils.clip_grad_norm_(params.values(), opt.clip)
  torch.optim.AdamW(
    params.values(), opt.learning_rate, (opt.b1, opt.b2), weight_decay=opt.weight_decay
  ).step()
  return before, {name: p.detach().numpy() for name, p in params.items()}


def differences(
  ours: dict[str, np.ndarray], before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> dict[str, float]:
  """How far ours is from theirs, over the length of the step; and how many arrays were compared.

  Adam's first step is the rate times the gradient's sign: values whose gradient is rounding may
  go the other way.
  """
  assert ours.keys() == after.keys()
  norm = lambda pairs: float(np.sqrt(sum(np.sum((a - b) ** 2, dtype=np.float64) for a, b in pairs)))
  apart = norm((ours[name], after[name]) for name in after)
  step = norm((after[name], before[name]) for name in after)
  return {"apart_over_step": apart / step, "step": step, "arrays": len(after)}


def markdown(result: dict[str, Any]) -> str:
  env, step = result["environment"], result["step"]
  lines = [
    "# Stable Diffusion 1, random weights: what is memorised is found and deleted, on CPU",
    "",
    f"`{result['command']}` on {env['machine']}; load before the start: {env['load_before']:.2f}.",
    "",
    f"512 px; what is trained: {result['trained']}.",
    "",
    "| command | seconds | peak memory, GiB |",
    "|---|---|---|",
  ]
  for name, stage in result["stages"].items():
    lines.append(f"| {name} | {stage['seconds']:.0f} | {stage['peak_gib']:.1f} |")
  told = (
    f"The first step beside PyTorch's, by the same draws: {step['apart_over_step']:.1e} of its "
    f"length apart, over {step['arrays']} arrays."
  )
  return "\n".join([*lines, "", told])


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="write sd_cpu.{md,json}")
  parser.add_argument("--trained", choices=PATTERNS, default="attn2", help="what is trained")
  parser.add_argument("--part", choices=("step",), help="for the process that it starts")
  parser.add_argument("--root", type=pathlib.Path, help="for that")
  args = parser.parse_args()
  if args.part:
    step = step_in_torch(args.root, config_of(args.root, "full", args.trained))
    (args.root / "step.json").write_text(json.dumps(step))
    return
  result: dict[str, Any] = {
    "command": " ".join(["python -m benchmarks.sd_cpu", *sys.argv[1:]]),
    "environment": environment(),
    "trained": args.trained,
    "stages": {},
  }
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    stable_diffusion.make("full", root / "base")
    save_extractor(root)
    save_prompts(root)
    for name, command in commands(root, args.trained).items():
      begin = time.strftime("%H:%M")
      result["stages"][name] = measure(command, folder=folder)
      print(f"{begin} {name}: {result['stages'][name]['seconds']:.0f} s", flush=True)
    result["step"] = json.loads((root / "step.json").read_text())
  text = markdown(result) + "\n"
  print(text)
  pages.write(args.out, "sd_cpu", result, text)


if __name__ == "__main__":
  main()
