r"""The probability-flow ODE (Song et al., 2021, sec. 4.3), and integrals along it.

With y = x_t / gamma_t and s = sigma_t / gamma_t the flow of a DDPM is dy/ds = eps(gamma y, t(s)),
gamma = (1 + s^2)^(-1/2). It is solved in u = log s, from the first noise level to the last:

    dy/du = s eps(gamma y, t(u))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.diffusion import Diffusion

MAX_STEPS = 512  # the embedded models take under 200
FIXED_STEPS = 200  # of the solver for a flow too stiff for the adaptive one
OVERFLOW = "overflow"

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
