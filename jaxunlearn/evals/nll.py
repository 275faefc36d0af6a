r"""Negative log-likelihood of the target by the probability-flow ODE (Song et al., 2021, sec. 4.3).

Along the flow of flow.py, in y = x_t / gamma_t and u = log(sigma_t / gamma_t):

    d log p/du  = -sigma tr(d eps/d x_t)
    log p(x)    = log N(gamma_T y_T; 0, I) + d log gamma_T + int sigma tr(d eps/d x_t) du

The trace is Hutchinson's estimate E_v[v^T (d eps/d x_t) v], v of random signs; all probes ride on
one solution, since y does not depend on them. The image stands at the first noise level (sigma is
.01 of DDPM's linear schedule): p is the data's density blurred by it.
In bits per dimension, log2(127.5) = 7.0 more for pixels of 0..255. Higher is better forgotten.

config.eval.nll_protocol chooses how the flow is followed, and stands in the identity:

interpolated  times between two whole ones, adaptive steps to config.eval.nll_tolerance
siss          whole times only, from the image without noise, 7 bits of offset: what the release of
              SISS computes, and what stands in the tables of its paper
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxunlearn import errors, evals
from jaxunlearn.diffusion import Diffusion, EpsFn, flow
from jaxunlearn.evals import statistics
from jaxunlearn.mesh import sharding

OFFSET = float(np.log2(127.5))  # from [-1, 1] to 256 levels, bits/dim
OFFSETS = {"interpolated": OFFSET, "siss": 7.0}


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`nll_bpd`, averaged over targets, with the interval of the mean over probes.

  A task without a target has no such value. Of a diverged model whose flow overflows even in
  fixed steps it is infinite, and the identity says solver=overflow.
  """
  if not len(task.target):
    return {}
  probes, protocol = task.options.nll_probes, task.options.nll_protocol
  kind = {"tolerance": task.options.nll_tolerance, "protocol": protocol}
  target = task.codec.encode(task.target)
  bits, solver = nll_bits(eps_fn, task.process, task.key("nll"), target, probes, **kind)
  bits = bits.mean(axis=0)
  identity = evals.identity(
    solver=solver, probes=probes, offset=f"{OFFSETS[protocol]:.3f}", dequantisation="none"
  )
  value = evals.Value(
    float(bits.mean()),
    statistics.mean_interval(bits) if np.isfinite(bits).all() else None,
    f"{identity} {task.target_identity} {task.model_identity}",
  )
  return {"nll_bpd": value}


def check(options: Any) -> None:
  """Raises ValueError where there is no such protocol."""
  errors.check_choice("NLL protocol", options.nll_protocol, OFFSETS)


def nll_bits(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x: Float[np.ndarray, "B H W C"],
  probes: int,
  tolerance: float,
  protocol: str = "interpolated",
) -> tuple[Float[np.ndarray, "B P"], str]:
  """Bits per dimension of each image under each of P probes, and the solver that gave them."""
  v = sharding.beside(eps_fn, jax.random.rademacher(rng, (probes, *x.shape), jnp.float32))
  density = functools.partial(log_density, eps_fn, process, x, v)
  if protocol == "siss":
    log_p, ok = density(None, whole_times=True)
    solver = "siss:rk4" if ok else flow.OVERFLOW
  else:
    log_p, solver = flow.attempt(density, tolerance)
  if solver == flow.OVERFLOW:
    return np.full((len(x), probes), np.inf), solver
  return -np.asarray(log_p, np.float64) / np.log(2) + OFFSETS[protocol], solver


@functools.partial(jax.jit, static_argnames=("process", "tolerance", "whole_times"))
def log_density(
  eps_fn: EpsFn,
  process: Diffusion,
  x: Float[Array, "B H W C"],
  probes: Float[Array, "P B H W C"],
  tolerance: float | None,
  whole_times: bool = False,
) -> tuple[Float[Array, "B P"], Array]:
  """log p(x) in nats per dimension for each probe, and whether the solver came through.

  `tolerance` is relative and absolute, of adaptive steps; None takes fixed ones. `whole_times` has
  steps of its own.
  """
  axes = (-3, -2, -1)

  def rates(x_t: Array, t: Array, sigma: Array) -> tuple[Array, Array]:
    eps, tangent = jax.linearize(lambda x_t: eps_fn(x_t, t), x_t)
    trace = jnp.mean(probes * jax.vmap(tangent)(probes), axes).T
    return eps, sigma * trace

  end = (
    flow.follow_whole_times(rates, process, x)
    if whole_times
    else flow.follow(rates, process, x, tolerance)
  )
  prior = -0.5 * jnp.mean(end.x_T**2 + np.log(2 * np.pi), axes)
  log_p = (prior + end.log_gamma_T)[:, None] + end.integrals
  return log_p, end.ok & jnp.isfinite(log_p).all()
