r"""The probability-flow ODE (Song et al., 2021, sec. 4.3), and integrals along it.

With y = x_t / gamma_t and s = sigma_t / gamma_t the flow of a DDPM is dy/ds = eps(gamma y, t(s)),
gamma = (1 + s^2)^(-1/2). It is solved in u = log s, from the first noise level to the last:

    dy/du = s eps(gamma y, t(u))

`follow_whole_times` is another discretisation of it, by whole times: that of the SISS release.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.diffusion import Diffusion

MAX_STEPS = 512  # the embedded models take under 200
FIXED_STEPS = 200  # of the solver for a flow too stiff for the adaptive one
OVERFLOW = "overflow"
WHOLE_START = 1e-5  # where the SDE of `follow_whole_times` begins

# (x_t, t [B] float32, sigma) -> eps, and a tree of what to integrate over u
Rates = Callable[[Array, Array, Array], tuple[Array, Any]]


class End(NamedTuple):
  """Where the flow leads to from an image."""

  x_T: Float[Array, "B H W C"]
  log_gamma_T: Float[Array, ""]
  integrals: Any  # of the rates
  ok: Array  # the solver came through; what it returns may overflow all the same


def follow(
  rates: Rates, process: Diffusion, x: Float[Array, "B H W C"], tolerance: float | None
) -> End:
  """The flow from x = y at the first noise level, with the integrals of `rates` along it.

  `tolerance` is relative and absolute, of adaptive steps; None takes fixed ones.
  """
  table = jnp.asarray(process.log_noise_to_signal(), jnp.float32)

  def field(u: Any, state: tuple[Array, Any], _: None) -> tuple[Array, Any]:
    s = jnp.exp(u)
    gamma = jax.lax.rsqrt(1 + s**2)
    t = jnp.full(len(x), jnp.interp(u, table, jnp.arange(process.T, dtype=jnp.float32)))
    eps, rate = rates(gamma * state[0], t, s * gamma)
    return s * eps, rate

  shapes = jax.eval_shape(lambda y: field(table[0], (y, None), None)[1], x)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  solver: diffrax.AbstractSolver
  control: diffrax.AbstractStepSizeController
  if tolerance is None:
    solver, control = diffrax.Heun(), diffrax.ConstantStepSize()
    dt, steps = (table[-1] - table[0]) / FIXED_STEPS, FIXED_STEPS + 1
  else:
    solver, control = diffrax.Dopri5(), diffrax.PIDController(tolerance, tolerance)
    dt, steps = None, MAX_STEPS
  solution = diffrax.diffeqsolve(
    diffrax.ODETerm(field),
    solver,
    t0=table[0],
    t1=table[-1],
    dt0=dt,
    y0=(x, zeros),
    stepsize_controller=control,
    max_steps=steps,
    adjoint=diffrax.ForwardMode(),  # no gradient is taken; compiles sooner
    throw=False,
  )
  y_T, integrals = jax.tree.map(lambda leaf: leaf[0], solution.ys)
  log_gamma = -0.5 * jnp.logaddexp(0.0, 2 * table[-1])
  ok = solution.result == diffrax.RESULTS.successful
  return End(jnp.exp(log_gamma) * y_T, log_gamma, integrals, ok)


def follow_whole_times(rates: Rates, process: Diffusion, x: Float[Array, "B H W C"]) -> End:
  """The flow of the variance-preserving SDE over v in [1e-5, 1], as Alberti et al. take it:

      dx/dv = -beta(v)/2 [x - eps(x, k) / sigma_k],   k = floor((T - 1) v)

  beta(v) is T beta_k at whole times and linear between them. The image stands at v = 1e-5, without
  noise. k and sigma_k jump at each whole time, where adaptive steps stumble: so the solver takes
  one Runge-Kutta step of fourth order from each to the next.
  """
  last = process.T - 1
  edges = np.append(WHOLE_START, np.arange(1, process.T) / last)
  rates_of_noise = process.T * (1 - process.abar / np.append(1.0, process.abar[:-1]))  # T beta_k
  sigma = np.sqrt(1 - process.abar)

  def field(state: tuple[Array, Any], v: Array, k: Array) -> tuple[Array, Any]:
    half = jnp.interp(v * last, jnp.arange(process.T), jnp.asarray(rates_of_noise, jnp.float32)) / 2
    sigma_k = jnp.asarray(sigma, jnp.float32)[k]
    eps, rate = rates(state[0], jnp.full(len(x), k), sigma_k)
    drift = -half * (state[0] - eps / sigma_k)
    return drift, jax.tree.map(lambda r: half / sigma_k**2 * r, rate)

  def step(state: tuple[Array, Any], span: Any) -> tuple[Any, None]:
    k, v, h = span
    ahead = lambda slope, part: jax.tree.map(lambda a, b: a + part * h * b, state, slope)
    k_1 = field(state, v, k)
    k_2 = field(ahead(k_1, 0.5), v + h / 2, k)
    k_3 = field(ahead(k_2, 0.5), v + h / 2, k)
    k_4 = field(ahead(k_3, 1.0), v + h, k)
    slope = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k_1, k_2, k_3, k_4)
    return ahead(slope, 1.0), None

  first = jnp.zeros(len(x), jnp.int32)
  shapes = jax.eval_shape(lambda x: rates(x, first, jnp.float32(sigma[0]))[1], x)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  spans = (np.arange(last, dtype=np.int32), np.float32(edges[:-1]), np.float32(np.diff(edges)))
  (x_T, integrals), _ = jax.lax.scan(step, (x, zeros), spans)
  log_gamma = -0.5 * np.trapezoid(
    np.interp(edges * last, np.arange(process.T), rates_of_noise), edges
  )
  return End(x_T, jnp.float32(log_gamma), integrals, jnp.isfinite(x_T).all())


def attempt(
  solve: Callable[[float | None], tuple[Any, Array]], tolerance: float
) -> tuple[Any, str]:
  """`solve(tolerance)` -> (result, ok), in fixed steps where that fails; and the solver's name.

  The name is OVERFLOW where both fail.
  """
  for value, name in ((tolerance, f"dopri5:{tolerance:g}"), (None, f"heun{FIXED_STEPS}")):
    result, ok = solve(value)
    if ok:
      return result, name
  return result, OVERFLOW
