"""What benchmarks/gpu.py times: each case is built by name, in this project and in PyTorch.

A builder returns what is called for one timed run, and it returns when the device is done. Its
variants go from the least memory to the most, so that a peak is that of the variant just run.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
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


HALF = {"bfloat16": {"dtype": "bfloat16"}}
BOTH = HALF | {"float32": {"dtype": "float32"}}
PARTS = HALF | {"bfloat16, 4 micro-batches": {"dtype": "bfloat16", "micro": 4}}
COMPILED = {"compiled, bfloat16, channels last": {"half": True, "compiled": True, "last": True}}
EAGER = {
  "eager, bfloat16": {"half": True, "compiled": False, "last": False},
  "eager, float32": {"half": False, "compiled": False, "last": False},
}
BATCHES = 4  # that steps take in turn; they are drawn before


class Case(NamedTuple):
  """A kind of run on a network; `rows` pictures pass a run, of which `torch_rows` in PyTorch."""

  build: str  # a name of _OURS
  fields: Mapping[str, Any]
  rows: int
  torch_rows: int  # fewer where PyTorch has no micro-batches; 0: not in PyTorch
  arguments: Mapping[str, Any] = {}
  ours: Mapping[str, Mapping[str, Any]] = HALF  # variants
  torch: Mapping[str, Mapping[str, Any]] = COMPILED  # none where there are no torch_rows


CASES = {
  "matrix product": Case("product", {"width": 8192}, 1, 1, torch=dict([*EAGER.items()][:1])),
  "CIFAR-10 UNet, plain step": Case(
    "step", siss_step.CIFAR10, 128, 128, {"kind": "plain"}, BOTH, COMPILED | EAGER
  ),
  "CIFAR-10 UNet, SISS step": Case(
    "step", siss_step.CIFAR10, 128, 128, {"kind": "siss"}, PARTS, COMPILED | EAGER
  ),
  "Stable Diffusion 1.4 UNet, plain step": Case("denoise", SD, 16, 16, {"net": "text_unet"}),
  "CIFAR-10 UNet, DDIM, 50 steps": Case("sample", siss_step.CIFAR10, 64, 64, {"steps": 50}),
  "CelebA-HQ 256 UNet, SISS step": Case("step", CELEBA, 64, 16, {"kind": "siss", "micro": 4}),
  "U-ViT-S/2, plain step": Case("denoise", UVIT, 128, 128, {"net": "uvit"}),
  "U-ViT-S/2, one pass": Case("compose", UVIT, 256, 0),
  "8 x U-ViT-S/2, soft": Case("compose", UVIT, 256, 0, {"sources": 8}),
  "8 x U-ViT-S/2, top-1": Case("compose", UVIT, 256, 0, {"sources": 8, "mode": "topk"}),
}
_TINY = {"step": siss_step.TINY, "sample": siss_step.TINY, "product": {"width": 256}}
_TINY |= {"compose": UVIT | {"width": 16, "depth": 2, "heads": 2}}
SMALL = {  # the same on networks that a CPU steps in a second, and which PyTorch need not compile
  name: case._replace(
    fields=_TINY.get(
      case.build, SMALL_SD if case.arguments.get("net") == "text_unet" else _TINY["compose"]
    ),
    rows={"compose": 16, "product": 1}.get(case.build, 4),
    torch_rows=min(case.torch_rows, 4),
    arguments={**case.arguments, **({"steps": 2} if case.build == "sample" else {})},
    torch=EAGER,
  )
  for name, case in CASES.items()
}


def ours(case: Case, dtype: str, **arguments: Any) -> Run:
  """A run of this project, compiled."""
  fields = {**case.fields, "dtype": dtype}
  return _OURS[case.build](fields, case.rows, **{**case.arguments, **arguments})


def theirs(case: Case, device: str, half: bool, compiled: bool, last: bool) -> Run:
  """A run of PyTorch and diffusers. Float32 products may round to TF32 there, as in JAX."""
  import torch
  from torch._functorch import config

  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  config.donated_buffer = False  # SISS goes back twice through one graph
  how = {"half": half, "compiled": compiled, "layout": _layout(last)}
  run = _TORCH[case.build](case.fields, case.torch_rows, device, how, **case.arguments)

  def finished() -> None:
    run()
    if device != "cpu":
      torch.cuda.synchronize()

  return finished


def flops(case: Case) -> float:
  """FLOPs a picture (convolutions, products): of a pass there and back, or of each pass forward.

  SISS's second way back is not counted, so that its rate is that of useful work.
  """
  import torch
  from torch.utils.flop_counter import FlopCounterMode

  if case.build == "product":
    return 2.0 * case.fields["width"] ** 3
  trained = case.build in ("step", "denoise")
  with torch.device("meta"), FlopCounterMode(display=False) as counter:
    net, inputs = _torch_net(case.fields, 1, "meta", **_net_of(case))
    out = net(*inputs).sample
    if trained:
      out.sum().backward()
  passes = case.arguments.get("steps", 1)
  if case.arguments.get("mode", "soft") == "soft":
    passes *= case.arguments.get("sources", 1)
  return counter.get_total_flops() * passes


def _net_of(case: Case) -> dict[str, str]:
  kind = "uvit" if case.build == "compose" else case.arguments.get("net")
  return {"net": kind} if kind else {}


# This project.


def _product(fields: dict[str, Any], rows: int) -> Run:
  import jax

  del rows
  shape = (fields["width"], fields["width"])
  m = jax.random.normal(jax.random.key(0), shape, fields["dtype"])
  product = jax.jit(lambda m: m @ m)
  return lambda: _drop(product(m).block_until_ready())


def _step(fields: dict[str, Any], rows: int, kind: str, micro: int = 1) -> Run:
  step, _ = siss_step.ours(fields, rows, kind, min(micro, rows))
  batches = _batches(fields, rows)
  return lambda: _drop(step(next(batches)))


def _batches(fields: Mapping[str, Any], rows: int) -> Iterator[dict[str, np.ndarray]]:
  return itertools.cycle([siss_step.make_batch(dict(fields), rows, i) for i in range(BATCHES)])


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
  from jaxunlearn.mesh import sharding
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
  def step(params: Any, state: Any, x: Any, t: Any) -> Any:
    loss = lambda params: jnp.sum((made.apply(params, x, t, c) - x) ** 2) / rows
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  everywhere = sharding.replicated(sharding.make_mesh())
  params = jax.device_put(jax.jit(made.init)(jax.random.key(0)), everywhere)
  x, t = (sharding.beside(params, a) for a in (x, t))
  held = [params, jax.jit(tx.init)(params)]

  def run() -> None:
    held[:] = jax.block_until_ready(step(*held, x, t))

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
  "product": _product,
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
  batches = _batches(fields, rows)
  return lambda: _drop(step(next(batches)))


def _torch_product(fields: Any, rows: int, device: str, how: dict[str, Any]) -> Run:
  import torch

  del rows, how
  m = torch.randn(fields["width"], fields["width"], device=device, dtype=torch.bfloat16)
  return lambda: _drop(m @ m)


def _torch_sample(fields: Any, rows: int, device: str, how: dict[str, Any], steps: int) -> Run:
  import diffusers
  import torch

  from benchmarks import torch_reference

  unet: Any = diffusers.UNet2DModel(**fields).to(device, memory_format=how["layout"]).eval()
  unet = torch.compile(unet) if how["compiled"] else unet
  scheduler = diffusers.DDIMScheduler()
  scheduler.set_timesteps(steps)
  shape = (rows, fields["in_channels"], fields["sample_size"], fields["sample_size"])
  noise = torch.randn(shape, device=device)

  def run() -> None:
    with torch.autocast(device, torch.bfloat16, enabled=how["half"]):
      torch_reference.ddim(unet, scheduler, noise)

  return run


def _torch_net(fields: Any, rows: int, device: str, net: str = "unet") -> tuple[Any, tuple]:
  """A network by its kind, and pictures, times (and text states) to call it with."""
  import diffusers
  import torch

  from jaxunlearn.models import uvit
  from tests import torch_uvit

  side, t = fields["sample_size"], torch.arange(rows, device=device)
  if net == "text_unet":
    states = torch.zeros(rows, 77, fields["cross_attention_dim"], device=device)
    x = torch.randn(rows, 4, side, side, device=device)
    return diffusers.UNet2DConditionModel(**fields).to(device), (x, t, states)
  made = torch_uvit.UViT(uvit.Net(**fields)) if net == "uvit" else diffusers.UNet2DModel(**fields)
  channels = 3 if net == "uvit" else fields["in_channels"]
  return made.to(device), (torch.randn(rows, channels, side, side, device=device), t)


def _torch_denoise(fields: Any, rows: int, device: str, how: dict[str, Any], net: str) -> Run:
  import torch

  made, (x, t, *states) = _torch_net(fields, rows, device, net)
  made.to(memory_format=how["layout"])
  called = torch.compile(made) if how["compiled"] else made
  settings = siss_step.OPTIMIZER
  betas = (settings["b1"], settings["b2"])
  adamw = torch.optim.AdamW(made.parameters(), settings["learning_rate"], betas, fused=True)

  def run() -> None:
    with torch.autocast(device, torch.bfloat16, enabled=how["half"]):
      loss = (called(x, t, *states).sample - x).square().sum() / rows
    loss.backward()
    torch.nn.utils.clip_grad_norm_(made.parameters(), settings["clip"])
    adamw.step()
    adamw.zero_grad(set_to_none=True)

  return run


def _layout(last: bool) -> Any:
  import torch

  return torch.channels_last if last else torch.contiguous_format


_TORCH: dict[str, Callable[..., Run]] = {
  "product": _torch_product,
  "step": _torch_step,
  "sample": _torch_sample,
  "denoise": _torch_denoise,
}
