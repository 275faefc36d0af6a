"""The plain and the SISS step in PyTorch with diffusers' UNet2DModel: what the benchmark beats.

Written from the equations of Alberti et al. (2025), with its reference algorithm's passes: one
forward over the whole batch, then one backward pass per loss term through the retained graph, for
every row. Eager float32, as in the paper; images are [B, C, H, W] in [-1, 1].
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
GAMMA, SIGMA = ABAR.sqrt().float(), (1 - ABAR).sqrt().float()


def q_sample(x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
  """gamma_t x + sigma_t eps."""
  gamma, sigma = _at(t)
  return gamma * x + sigma * noise


def plain_direction(unet: UNet2DModel, x: Tensor, t: Tensor, noise: Tensor) -> list[Tensor]:
  """The gradient of E ||eps - eps_theta(x_t, t)||^2."""
  loss = _sum(noise - unet(q_sample(x, t, noise), t).sample).mean()
  return list(torch.autograd.grad(loss, list(unet.parameters())))


def siss_direction(
  unet: UNet2DModel,
  x: Tensor,
  a: Tensor,
  t: Tensor,
  m_t: Tensor,
  lam: float,
  forget_norm: float,
) -> list[Tensor]:
  """g_x - c g_a with c = forget_norm / ||g_a||, the gradients of the two weighted terms."""
  gamma, sigma = _at(t)
  r = ((gamma / sigma**2) * (a - x) * (m_t - gamma * (x + a) / 2)).sum((1, 2, 3))
  w_x = torch.exp(-torch.logaddexp(torch.full_like(r, math.log(1 - lam)), math.log(lam) + r))
  w_a = torch.exp(-torch.logaddexp(math.log(1 - lam) - r, torch.full_like(r, math.log(lam))))
  eps_hat = unet(m_t, t).sample
  loss_x = (w_x * _sum((m_t - gamma * x) / sigma - eps_hat)).mean()
  loss_a = (w_a * _sum((m_t - gamma * a) / sigma - eps_hat)).mean()
  params = list(unet.parameters())
  g_x = torch.autograd.grad(loss_x, params, retain_graph=True)
  g_a = torch.autograd.grad(loss_a, params)
  c = forget_norm / torch.nn.utils.get_total_norm(g_a)
  return [p - c * q for p, q in zip(g_x, g_a, strict=True)]


def make_step(
  kind: str,
  fields: dict[str, Any],
  optimizer: dict[str, float],
  lam: float,
  forget_norm: float,
  layout: torch.memory_format,
  device: str = "cpu",
  half: bool = False,
  compiled: bool = False,
) -> Callable[[dict[str, Any]], float]:
  """A whole optimiser step on NumPy streams [B, H, W, C], which returns its cost in forwards.

  `half` computes the network in bfloat16; `compiled` by torch.compile.
  """
  torch.manual_seed(0)
  unet: Any = UNet2DModel(**fields).to(device, memory_format=layout)
  if compiled:
    unet = torch.compile(unet)
  params = list(unet.parameters())
  adamw = torch.optim.AdamW(
    params,
    optimizer["learning_rate"],
    (optimizer["b1"], optimizer["b2"]),
    weight_decay=optimizer["weight_decay"],
    fused=True,
  )

  def step(batch: dict[str, Any]) -> float:
    streams = {
      k: torch.from_numpy(v).to(device).permute(0, 3, 1, 2).contiguous(memory_format=layout)
      for k, v in batch.items()
    }
    x = streams["x"]
    t = torch.randint(0, len(ABAR), (len(x),), device=device)
    noise = torch.randn_like(x)
    with torch.autocast(device, torch.bfloat16, enabled=half):
      if kind == "plain":
        direction = plain_direction(unet, x, t, noise)
      else:
        a = streams["a"]
        source = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < lam, a, x)
        m_t = q_sample(source, t, noise)
        direction = siss_direction(unet, x, a, t, m_t, lam, forget_norm)
    for param, g in zip(params, direction, strict=True):
      param.grad = g
    torch.nn.utils.clip_grad_norm_(params, optimizer["clip"])
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    return 3.0 if kind == "plain" else 5.0  # a backward pass counts as two forward ones

  return step


def size(fields: dict[str, Any], batch: int) -> dict[str, float]:
  """Parameters, and the FLOPs of one forward and one backward pass (convolutions, products)."""
  shape = (batch, fields["in_channels"], fields["sample_size"], fields["sample_size"])
  with torch.device("meta"), FlopCounterMode(display=False) as counter:
    unet = UNet2DModel(**fields)
    unet(torch.empty(shape), torch.zeros(batch)).sample.sum().backward()
  return {
    "parameters": sum(p.numel() for p in unet.parameters()),
    "plain_flops": counter.get_total_flops(),
  }


@torch.no_grad()
def ddim(
  unet: UNet2DModel, scheduler: DDIMScheduler, noise: Tensor, labels: Tensor | None = None
) -> Tensor:
  """Samples from the noise at the scheduler's times."""
  x = noise
  for t in scheduler.timesteps:
    x = scheduler.step(unet(x, t.to(x.device), labels).sample, t, x).prev_sample
  return x


def _at(t: Tensor) -> tuple[Tensor, Tensor]:
  gamma, sigma = (values.to(t.device)[t].view(-1, 1, 1, 1) for values in (GAMMA, SIGMA))
  return gamma, sigma


def _sum(difference: Tensor) -> Tensor:
  return difference.square().sum((1, 2, 3))
