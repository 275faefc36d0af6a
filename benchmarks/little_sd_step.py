"""A training step of the little Stable Diffusion: this project beside PyTorch and diffusers.

  python -m benchmarks.little_sd_step --out=results     (5 minutes on 2 idle cores)
  python -m benchmarks.little_sd_step --quick           (a smoke test on tiny networks)

The networks, batch and optimiser of configs/pretrain_little_sd.py, from random weights: UNet and
text encoder are trained together, a tenth of the prompts is dropped, gradients are clipped, AdamW,
an average is kept. Here each core is a device, as in a run. In PyTorch these are diffusers'
UNet2DConditionModel and transformers' CLIPTextModel, eagerly, by the fused AdamW. A step is
everything from latents and numbers of prompts on. Each has a process of its own, as in a run, and
they take turns; a ratio is between neighbours in time. Beside them this project without
jaxunlearn/mesh/memory.py: what a step has worked in goes back to the system.
"""

import argparse
import math
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import pages, turns
from benchmarks.siss_step import environment
from jaxunlearn.mesh import cores, memory

OURS, GIVEN_BACK, PYTORCH = "this project", "its memory given back", "PyTorch with diffusers"
PROCESSES = (OURS, GIVEN_BACK, PYTORCH)
DROPPED, PROMPTS = 0.1, 256
NULL = -1  # the last row of the book, the empty prompt
TINY = {
  "unet": {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
  },
  "text": {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 8,
    "end": 99,
  },
}


def network(quick: bool) -> Any:
  """The network with a book of random prompts, the empty one last."""
  from configs import pretrain_little_sd
  from jaxunlearn import models
  from jaxunlearn.models.text_to_image import Book

  fields = TINY if quick else pretrain_little_sd.model()
  places, end = (fields["text"][name] for name in ("max_position_embeddings", "end"))
  ids = np.random.default_rng(0).integers(1, end, (PROMPTS + 1, places)).astype(np.int32)
  ids[:, 0], ids[:, -1], ids[-1, 1:] = 0, end, end
  return models.make("text_to_image", **fields, classes=(PROMPTS,), book=Book(ids))


def batch_of(net: Any, size: int, seed: int) -> dict[str, np.ndarray]:
  """Latents and numbers of prompts."""
  rng = np.random.default_rng(seed)
  image = rng.standard_normal((size, *net.image_shape)).astype(np.float32)
  return {"image": image, "c": rng.integers(0, PROMPTS, size).astype(np.int32)}


def settings(size: int) -> Any:
  """The config, with the learning rate that its schedule comes to."""
  from configs import pretrain_little_sd

  config = pretrain_little_sd.get_config()
  config.optimizer.update(schedule="constant", warmup=0)
  config.train.batch = size
  return config


def ours(net: Any, params: Any, size: int) -> Callable[[dict[str, np.ndarray]], None]:
  """This project's step, as a run takes it."""
  import jax

  from jaxunlearn import build, methods, step
  from jaxunlearn.diffusion import Diffusion
  from jaxunlearn.mesh import sharding

  config = settings(size)
  setup = build.without_data(
    config=config,
    mesh=sharding.make_mesh(math.gcd(size, jax.device_count())),
    process=Diffusion(**config.process),
    net=net,
    method=methods.make(**config.method),
  )
  state = build.make_state(setup, params)
  update, where = step.make_update(setup, state), sharding.batch_sharding(setup.mesh)

  def take(batch: dict[str, np.ndarray]) -> None:
    nonlocal state
    index = np.arange(size, dtype=np.int32)
    rows = methods.Rows(batch["image"], batch["c"], index)
    state, _ = update(state, sharding.put({"x": rows}, where))
    jax.block_until_ready(state)

  return take


class Theirs:
  """diffusers' UNet and transformers' text encoder with the same weights, and their step."""

  def __init__(self, net: Any, params: Any, size: int):
    import diffusers
    import torch
    import transformers

    from jaxunlearn.diffusion import Diffusion
    from jaxunlearn.weights import pipeline_config, pretrained

    config = settings(size)
    self.unet = diffusers.UNet2DConditionModel.from_config(pipeline_config.write_unet(net.unet))
    fields = pipeline_config.write_text(net.text)
    self.text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**fields))
    for module, part in ((self.unet, "unet"), (self.text, "text_encoder")):
      state = pretrained.to_state_dict(params[part])
      names = {name.removeprefix(pretrained.TEXT_PREFIX): name for name in module.state_dict()}
      given = {names[name]: torch.from_numpy(value.copy()) for name, value in state.items()}
      module.load_state_dict(given, strict=False)
    self.params = [*self.unet.parameters(), *self.text.parameters()]
    self.ema, self.decay = [p.detach().clone() for p in self.params], config.ema
    self.clip, self.ids = config.optimizer.clip, torch.from_numpy(net.book.ids).long()
    abar = torch.from_numpy(Diffusion(**config.process).abar.copy())
    self.gamma, self.sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
    self.adam = torch.optim.AdamW(
      self.params,
      config.optimizer.learning_rate,
      (config.optimizer.b1, config.optimizer.b2),
      weight_decay=config.optimizer.weight_decay,
      fused=True,
    )

  def loss(self, x: Any, t: Any, noise: Any, c: Any) -> Any:
    """E ||eps - eps_theta(x_t, t, text(c))||^2 of latents [B, C, H, W]."""
    gamma, sigma = (part[t].view(-1, 1, 1, 1) for part in (self.gamma, self.sigma))
    states = self.text(self.ids[c]).last_hidden_state
    error = noise - self.unet(gamma * x + sigma * noise, t, states).sample
    return error.square().sum((1, 2, 3)).mean()

  def __call__(self, batch: dict[str, np.ndarray]) -> None:
    import torch

    x = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous()
    c = torch.from_numpy(batch["c"]).long()
    c = torch.where(torch.rand(len(c)) < DROPPED, NULL, c)
    t = torch.randint(0, len(self.gamma), (len(x),))
    self.loss(x, t, torch.randn_like(x), c).backward()
    torch.nn.utils.clip_grad_norm_(self.params, self.clip)
    self.adam.step()
    self.adam.zero_grad(set_to_none=True)
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, [p.detach() for p in self.params], 1 - self.decay)


def parameters(net: Any) -> Any:
  """Random ones, without compiling `init`."""
  import jax

  rng = np.random.default_rng(0)
  draw = lambda s: rng.normal(0, np.prod(s.shape[:-1]) ** -0.5, s.shape).astype(np.float32)
  return jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0)))


def made(name: str, quick: bool) -> Callable[[int], None]:
  """One of PROCESSES: the step of a round, which the batch is of."""
  if name == OURS:
    memory.keep()
  cores.as_devices()
  net, size = network(quick), batch_size(quick)
  params = parameters(net)
  take = Theirs(net, params, size) if name == PYTORCH else ours(net, params, size)
  return lambda round_: take(batch_of(net, size, round_))


def batch_size(quick: bool) -> int:
  return 8 if quick else 64


def measure(quick: bool, rounds: int) -> dict[str, Any]:
  """Seconds of each in each round, after a step that is not counted."""
  processes = {name: turns.Apart(made, name, quick) for name in PROCESSES}
  found = {name: [process(0)] for name, process in processes.items()}
  for round_ in range(1, rounds + 1):
    for name, process in processes.items():
      found[name].append(process(round_))
  for process in processes.values():
    process.stop()
  seconds = {name: [took for took, _ in each] for name, each in found.items()}
  ratios = lambda name: [
    a / b for a, b in zip(seconds[name][1:], seconds[PYTORCH][1:], strict=True)
  ]
  return {
    "batch": batch_size(quick),
    "first_seconds": {name: each[0] for name, each in seconds.items()},
    "seconds": {name: each[1:] for name, each in seconds.items()},
    "kernel_seconds": {name: [k for _, k in each[1:]] for name, each in found.items()},
    "ratio": {name: statistics.median(ratios(name)) for name in (OURS, GIVEN_BACK)},
    "ratio_range": {name: [min(ratios(name)), max(ratios(name))] for name in (OURS, GIVEN_BACK)},
  }


def markdown(result: dict[str, Any]) -> str:
  found = result["step"]
  lines = [
    "# A training step of the little Stable Diffusion, on CPU",
    "",
    f"{pages.made(result['command'], result['environment'], pages.BOTH)} "
    f"Batch {found['batch']}, float32, a process each, in turn. Kernel: CPU seconds of a step.",
    "",
    "| what | median s | least s | kernel, s | over PyTorch's (min to max) | first step, s |",
    "|---|---|---|---|---|---|",
  ]
  for name, seconds in found["seconds"].items():
    ratio = "1"
    if name in found["ratio"]:
      low, high = found["ratio_range"][name]
      ratio = f"{found['ratio'][name]:.2f} ({low:.2f} to {high:.2f})"
    kernel, first = statistics.median(found["kernel_seconds"][name]), found["first_seconds"][name]
    lines.append(
      f"| {name} | {statistics.median(seconds):.3f} | {min(seconds):.3f} | {kernel:.2f} | {ratio} "
      f"| {first:.1f} |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="write little_sd_step.{md,json} there")
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--rounds", type=int, default=15)
  args = parser.parse_args()
  result = {
    "command": " ".join(["python -m benchmarks.little_sd_step", *sys.argv[1:]]),
    "environment": environment(),
    "step": measure(args.quick, args.rounds),
  }
  print(markdown(result))
  pages.write(args.out, "little_sd_step", result, markdown(result))


if __name__ == "__main__":
  main()
