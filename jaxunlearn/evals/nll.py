r"""Negative log-likelihood of the target by the probability-flow ODE (Song et al., 2021, sec. 4.3).

With y = x_t / gamma_t and s = sigma_t / gamma_t the flow of a DDPM is dy/ds = eps(gamma y, t(s)),
gamma = (1 + s^2)^(-1/2). In u = log s, from the first noise level to the last:

    dy/du       = s eps(gamma y, t(u))
    d log p/du  = -s gamma tr(d eps/d x_t) = -sigma tr(d eps/d x_t)
    log p(x)    = log N(gamma_T y_T; 0, I) + d log gamma_T + int sigma tr(d eps/d x_t) du

The trace is Hutchinson's estimate E_v[v^T (d eps/d x_t) v], v of random signs; all probes ride on
one solution, since y does not depend on them. The image stands at the first noise level (sigma is
.01 of DDPM's linear schedule): p is the data's density blurred by it.
In bits per dimension, log2(127.5) = 7.0 more for pixels of 0..255. Higher is better forgotten.
"""

import functools
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxunlearn import evals
from jaxunlearn.diffusion import Diffusion, EpsFn
from jaxunlearn.evals import statistics

MAX_STEPS = 512  # the embedded models take under 200
FIXED_STEPS = 200  # of the solver for a flow too stiff for the adaptive one
OFFSET = float(np.log2(127.5))  # from [-1, 1] to 256 levels, bits/dim


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`nll_bpd`, averaged over targets, with the interval of the mean over probes.

  A task without a target has no such value. Of a diverged model whose flow overflows even in
  fixed steps it is infinite, and the identity says solver=overflow.
  """
  if not len(task.target):
    return {}
  probes, tolerance = task.options.nll_probes, task.options.nll_tolerance
  rng = task.key("nll")
  bits, solver = nll_bits(eps_fn, task.process, rng, task.target, probes, tolerance)
  bits = bits.mean(axis=0)
  identity = evals.identity(
    solver=solver, probes=probes, offset=f"{OFFSET:.3f}", dequantisation="none"
  )
  value = evals.Value(
    float(bits.mean()),
    statistics.mean_interval(bits) if np.isfinite(bits).all() else None,
    f"{identity} {task.target_identity} {task.model_identity}",
  )
  return {"nll_bpd": value}


def nll_bits(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x: Float[np.ndarray, "B H W C"],
  probes: int,
  tolerance: float,
) -> tuple[Float[np.ndarray, "B P"], str]:
  """Bits per dimension of each image under each of P probes, and the solver that gave them."""
  v = jax.random.rademacher(rng, (probes, *x.shape), jnp.float32)
  log_p, ok = log_density(eps_fn, process, x, v, tolerance)
  solver = f"dopri5:{tolerance:g}"
  if not ok:
    log_p, ok = log_density(eps_fn, process, x, v, None)
    solver = f"heun{FIXED_STEPS}"
  if not ok:
    return np.full((len(x), probes), np.inf), "overflow"
  return -np.asarray(log_p, np.float64) / np.log(2) + OFFSET, solver


@functools.partial(jax.jit, static_argnames=("process", "tolerance"))
def log_density(
  eps_fn: EpsFn,
  process: Diffusion,
  x: Float[Array, "B H W C"],
  probes: Float[Array, "P B H W C"],
  tolerance: float | None,
) -> tuple[Float[Array, "B P"], Array]:
  """log p(x) in nats per dimension for each probe, and whether the solver came through.

  `tolerance` is relative and absolute, of adaptive steps; None takes fixed ones.
  """
  table = jnp.asarray(process.log_noise_to_signal(), jnp.float32)
  axes = (-3, -2, -1)

  def flow(u: Any, state: tuple[Array, Array], _: None) -> tuple[Array, Array]:
    s = jnp.exp(u)
    gamma = jax.lax.rsqrt(1 + s**2)
    t = jnp.full(len(x), jnp.interp(u, table, jnp.arange(process.T, dtype=jnp.float32)))
    eps, tangent = jax.linearize(lambda x_t: eps_fn(x_t, t), gamma * state[0])
    trace = jnp.mean(probes * jax.vmap(tangent)(probes), axes).T
    return s * eps, s * gamma * trace

  solver: diffrax.AbstractSolver
  control: diffrax.AbstractStepSizeController
  if tolerance is None:
    solver, control = diffrax.Heun(), diffrax.ConstantStepSize()
    dt, steps = (table[-1] - table[0]) / FIXED_STEPS, FIXED_STEPS + 1
  else:
    solver, control = diffrax.Dopri5(), diffrax.PIDController(tolerance, tolerance)
    dt, steps = None, MAX_STEPS
  solution = diffrax.diffeqsolve(
    diffrax.ODETerm(flow),
    solver,
    t0=table[0],
    t1=table[-1],
    dt0=dt,
    y0=(x, jnp.zeros((len(x), len(probes)))),
    stepsize_controller=control,
    max_steps=steps,
    adjoint=diffrax.ForwardMode(),  # no gradient is taken; compiles sooner
    throw=False,
  )
  y_T, integral = (part[0] for part in solution.ys)
  log_gamma = -0.5 * jnp.logaddexp(0.0, 2 * table[-1])
  x_T = jnp.exp(log_gamma) * y_T
  prior = -0.5 * jnp.mean(x_T**2 + np.log(2 * np.pi), axes)
  log_p = (prior + log_gamma)[:, None] + integral
  return log_p, (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(log_p).all()
