"""What benchmarks/gpu.py times: each case is built by name, in this project and in PyTorch.

A builder returns what is called for one timed run, and it returns when the device is done. Its
variants go from the least memory to the most, so that a peak is that of the variant just run.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks import siss_step

Run = Callable[[], None]
CELEBA = {
  "sample_size": 256,
  "block_out_channels": (128, 128, 256, 256, 512, 512),
  "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}
CELEBA = siss_step.CIFAR10 | CELEBA
UVIT = {"sample_size": 32, "patch_size": 2, "width": 512, "depth": 12, "heads": 8}
SD = {
  "sample_size": 64,
  "block_out_channels": (320, 640, 1280, 1280),
  "attention_head_dim": 8,
  "cross_attention_dim": 768,
}
SMALL_SD = SD | {"sample_size": 8, "block_out_channels": (8, 16), "cross_attention_dim": 12}
SMALL_SD |= {"attention_head_dim": 2, "norm_num_groups": 4, "layers_per_block": 1}
SMALL_SD |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
SMALL_SD |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}


class Case(NamedTuple):
  """A kind of run on a network; `rows` pictures pass a run, of which `torch_rows` in PyTorch."""

  build: str  # a name of OURS
  fields: Mapping[str, Any]
  rows: int
  torch_rows: int  # fewer where PyTorch has no micro-batches
  arguments: Mapping[str, Any] = {}


CASES = {
  "CIFAR-10 UNet, plain step": Case("step", siss_step.CIFAR10, 128, 128, {"kind": "plain"}),
  "CIFAR-10 UNet, SISS step": Case("step", siss_step.CIFAR10, 128, 128, {"kind": "siss"}),
  "CIFAR-10 UNet, DDIM, 50 steps": Case("sample", siss_step.CIFAR10, 64, 64, {"steps": 50}),
  "Stable Diffusion 1.4 UNet, plain step": Case("denoise", SD, 16, 16, {"net": "text_unet"}),
  "CelebA-HQ 256 UNet, SISS step": Case("step", CELEBA, 64, 16, {"kind": "siss", "micro": 4}),
  "U-ViT-S/2, plain step": Case("denoise", UVIT, 128, 128, {"net": "uvit"}),
  "U-ViT-S/2, one pass": Case("compose", UVIT, 256, 0, {}),
  "8 x U-ViT-S/2, soft": Case("compose", UVIT, 256, 0, {"sources": 8}),
  "8 x U-ViT-S/2, top-1": Case("compose", UVIT, 256, 0, {"sources": 8, "mode": "topk"}),
}
SMALL = {  # the same on networks that a CPU steps in a second
  name: case._replace(
    fields={"text_unet": SMALL_SD, "uvit": {**UVIT, "width": 16, "depth": 2, "heads": 2}}.get(
      case.arguments.get("net", "uvit" if case.build == "compose" else ""), siss_step.TINY
    ),
    rows=16 if case.build == "compose" else 4,
    torch_rows=min(case.torch_rows, 4),
    arguments={**case.arguments, **({"steps": 2} if case.build == "sample" else {})},
  )
  for name, case in CASES.items()
}
OURS = {"bfloat16": {"dtype": "bfloat16"}, "float32": {"dtype": "float32"}}
TORCH = {
  "compiled, bfloat16, channels last": {"half": True, "compiled": True, "last": True},
  "eager, bfloat16": {"half": True, "compiled": False, "last": False},
  "eager, float32": {"half": False, "compiled": False, "last": False},
}


def ours(case: Case, dtype: str) -> Run:
  """A run of this project, compiled."""
  return _OURS[case.build]({**case.fields, "dtype": dtype}, case.rows, **case.arguments)


def theirs(case: Case, device: str, half: bool, compiled: bool, last: bool) -> Run:
  """A run of PyTorch and diffusers. Float32 products may round to TF32 there, as in JAX."""
  import torch

  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  how = {"half": half, "compiled": compiled, "layout": _layout(last)}
  run = _TORCH[case.build](case.fields, case.torch_rows, device, how, **case.arguments)

  def finished() -> None:
    run()
    if device != "cpu":
      torch.cuda.synchronize()

  return finished


# This project.


def _step(fields: dict[str, Any], rows: int, kind: str, micro: int = 1) -> Run:
  step, _ = siss_step.ours(fields, rows, kind, min(micro, rows))
  seeds = iter(range(10**9))
  return lambda: _drop(step(siss_step.make_batch(fields, rows, next(seeds))))


def _sample(fields: dict[str, Any], rows: int, steps: int) -> Run:
  import jax

  from jaxunlearn import models
  from jaxunlearn.diffusion import Diffusion, sampling

  net = models.make("unet", **fields)
  eps_fn = jax.tree_util.Partial(net.apply, jax.jit(net.init)(jax.random.key(0)))
  noise = jax.random.normal(jax.random.key(1), (rows, *net.image_shape))
  draw = lambda: sampling.sample(
    eps_fn, Diffusion(), jax.random.key(2), noise, None, sampler="ddim", steps=steps
  )
  return lambda: _drop(jax.block_until_ready(draw()))


def _denoise(fields: dict[str, Any], rows: int, net: str) -> Run:
  """A plain step of any network: loss, gradient, clip, AdamW; text states stand for a prompt."""
  import jax
  import jax.numpy as jnp
  import optax

  from jaxunlearn import models
  from jaxunlearn.models import text_unet

  made: Any = text_unet.Net(**fields) if net == "text_unet" else models.make(net, **fields)
  shape = made.image_shape
  c = jnp.zeros((rows, 77, fields["cross_attention_dim"])) if net == "text_unet" else None
  x, t = jax.random.normal(jax.random.key(1), (rows, *shape)), jnp.arange(rows)
  settings = siss_step.OPTIMIZER
  tx = optax.chain(
    optax.clip_by_global_norm(settings["clip"]),
    optax.adamw(settings["learning_rate"], settings["b1"], settings["b2"]),
  )

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params: Any, state: Any) -> Any:
    loss = lambda params: jnp.sum((made.apply(params, x, t, c) - x) ** 2) / rows
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  params = jax.jit(made.init)(jax.random.key(0))
  held = [params, jax.jit(tx.init)(params)]

  def run() -> None:
    held[:] = jax.block_until_ready(step(*held))

  return run


def _compose(fields: dict[str, Any], rows: int, sources: int = 1, mode: str = "soft") -> Run:
  """One evaluation of the noise predictor: of one network, or of many composed."""
  import jax
  import jax.numpy as jnp

  from jaxunlearn import adapters, models
  from jaxunlearn.cdm import compartment, compose
  from jaxunlearn.cdm.routers import kmeans
  from jaxunlearn.diffusion import Diffusion

  rng, net, router = np.random.default_rng(0), models.make("uvit", **fields), kmeans.Router(k=8)
  x = jnp.asarray(rng.standard_normal((rows, *net.image_shape)), jnp.float32)
  t = jnp.asarray(rng.integers(0, 300, rows), jnp.int32)
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  many = lambda s: jnp.asarray(0.05 * rng.standard_normal((sources, *s.shape)), jnp.float32)
  params = jax.tree.map(many, shapes)
  if sources == 1:
    apply = jax.jit(net.apply)
    alone = jax.tree.map(lambda leaf: leaf[0], params)
    return lambda: _drop(apply(alone, x, t).block_until_ready())
  centers = (sources, router.k, router.features(x[:1]).shape[1])
  parts = {
    "center": jnp.asarray(rng.standard_normal(centers), jnp.float32),
    "variance": jnp.ones(centers[:2]),
    "log_share": jnp.full(centers[:2], -np.log(router.k), jnp.float32),
  }
  names = tuple(map(str, range(sources)))
  compartments = compose.Compartments(names, (1,) * sources, params, parts)
  how = compose.Mode(mode) if mode == "soft" else compose.Mode(mode, k=1, block=rows // sources)
  kind = compartment.make(adapters.Full(), net, Diffusion())
  bound = jax.tree_util.Partial(kind.apply, {})
  eps_fn = compose.compose(bound, compartments, router, Diffusion(), how)
  evaluate = jax.jit(lambda eps_fn, x, t: eps_fn(x, t))
  return lambda: _drop(evaluate(eps_fn, x, t).block_until_ready())


def _drop(_: Any) -> None:
  return None


_OURS: dict[str, Callable[..., Run]] = {
  "step": _step,
  "sample": _sample,
  "denoise": _denoise,
  "compose": _compose,
}


# PyTorch.


def _torch_step(
  fields: Any, rows: int, device: str, how: dict[str, Any], kind: str, micro: int = 1
) -> Run:
  from benchmarks import torch_reference

  step = torch_reference.make_step(
    kind, dict(fields), siss_step.OPTIMIZER, **siss_step.SISS, device=device, **how
  )
  seeds = iter(range(10**9))
  return lambda: _drop(step(siss_step.make_batch(fields, rows, next(seeds))))


def _torch_sample(fields: Any, rows: int, device: str, how: dict[str, Any], steps: int) -> Run:
  import diffusers
  import torch

  unet: Any = diffusers.UNet2DModel(**fields).to(device, memory_format=how["layout"]).eval()
  unet = torch.compile(unet) if how["compiled"] else unet
  scheduler = diffusers.DDIMScheduler()
  scheduler.set_timesteps(steps)
  shape = (rows, fields["in_channels"], fields["sample_size"], fields["sample_size"])
  noise = torch.randn(shape, device=device)

  def run() -> None:
    x = noise
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=how["half"]):
      for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t.to(device)).sample, t, x).prev_sample

  return run


def _torch_denoise(fields: Any, rows: int, device: str, how: dict[str, Any], net: str) -> Run:
  import diffusers
  import torch

  from tests import torch_uvit

  side = fields["sample_size"]
  if net == "text_unet":
    made: Any = diffusers.UNet2DConditionModel(**fields).to(device, memory_format=how["layout"])
    x = torch.randn(rows, 4, side, side, device=device)
    states = torch.zeros(rows, 77, fields["cross_attention_dim"], device=device)
    arguments: tuple[Any, ...] = (states,)
  else:
    from jaxunlearn.models import uvit

    made = torch_uvit.UViT(uvit.Net(**fields)).to(device)
    x = torch.randn(rows, 3, side, side, device=device)
    arguments = ()
  called = torch.compile(made) if how["compiled"] else made
  settings = siss_step.OPTIMIZER
  betas = (settings["b1"], settings["b2"])
  adamw = torch.optim.AdamW(made.parameters(), settings["learning_rate"], betas, fused=True)
  t = torch.arange(rows, device=device)

  def run() -> None:
    with torch.autocast(device, torch.bfloat16, enabled=how["half"]):
      loss = (called(x, t, *arguments).sample - x).square().sum() / rows
    loss.backward()
    torch.nn.utils.clip_grad_norm_(made.parameters(), settings["clip"])
    adamw.step()
    adamw.zero_grad(set_to_none=True)

  return run


def _layout(last: bool) -> Any:
  import torch

  return torch.channels_last if last else torch.contiguous_format


_TORCH: dict[str, Callable[..., Run]] = {
  "step": _torch_step,
  "sample": _torch_sample,
  "denoise": _torch_denoise,
}
