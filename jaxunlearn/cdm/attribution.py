r"""Attribution: what each source gave to an image's likelihood (Golatkar et al., 2024, eq. 6).

    log p_0(x_0) = log p_1(x_1) - (d/2) int beta dt + sum_i L_i
    L_i = -1/2 int beta_t div(w_i s_i)(x_t) dt,   credit C_i = L_i / sum_j L_j

along the probability-flow ODE of the mixture, of score sum_i w_i s_i. With s_i = -eps_i / sigma and
beta dt = 2 sigma^2 du, in u = log(sigma_t / gamma_t), the time of flow.py:

    L_i = int sigma div(w_i eps_i) du,   div(w_i eps_i) = w_i div eps_i + grad w_i . eps_i

The second term is the router's: without it sum_i L_i is not the mixture's. The divergence is
Hutchinson's estimate E_v[v^T J v], v of random signs, the same v for all sources: one
Jacobian-vector product with x -> (w_i eps_i)_i gives them all, and their sum is the estimate of the
mixture's. As in evals/nll.py the image stands at the first noise level and
-(d/2) int beta dt = d log gamma_T: p_0 is the data's density blurred by that level.

A share of a sum is no probability: C_i may be negative or above 1, where a source's likelihood
falls along the flow. Where the L_i cancel it says nothing and is nan. Its standard error over the
probes, each of which has an L_i of its own, is to first order

    sqrt(sum_v (L_iv - C_i sum_j L_jv)^2 / (P (P - 1))) / |sum_j L_j|

and knows of no other error, the networks' and the router's. Beside the credit stands the mean of
w_i = p(i | x_t) over the trajectory (over u), in 0..1 and of sum 1.
"""

import csv
import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxunlearn.diffusion import Diffusion, flow
from jaxunlearn.reports import charts, writer

CANCELLED = 1e-3  # no credit where |sum_i L_i| is under this share of sum_i |L_i|
COLUMNS = ("id", "source", "L", "credit", "credit_error", "weight")


class Attribution(NamedTuple):
  """In nats per image; after a flow that overflows even in fixed steps all are nan."""

  log_p: Float[Array, " B"]  # log_p_end + d log gamma_T + sum_i L_i
  log_p_end: Float[Array, " B"]  # log N(x_T; 0, I)
  parts: Float[Array, "B n"]  # L_i
  credit: Float[Array, "B n"]  # C_i, nan where the L_i cancel
  credit_error: Float[Array, "B n"]  # of the probes: one standard error, nan of a single one
  weights: Float[Array, "B n"]  # mean of w_i over the trajectory
  solver: str  # dopri5:TOLERANCE, or heun200 where that fails, or overflow


def attribute(
  eps_all: Callable[[Array, Array], Float[Array, "n B H W C"]],
  log_weights: Callable[[Array, Array], Float[Array, "B n"]],
  process: Diffusion,
  x0: Float[Array | np.ndarray, "B H W C"],
  rng: Shaped[Array, "..."],
  *,
  probes: int = 8,
  exact: bool = False,
  tolerance: float = 1e-4,
) -> Attribution:
  """The log-likelihood of each image under the mixture, and each source's part in it.

  Args:
    eps_all: a pytree, as compose.py makes it; of times between two as well. A condition is bound to
      it: `under(eps_all, c)`.
    log_weights: a pytree too, with the same condition bound.
    probes: of the divergence.
    exact: the whole trace instead, by d products, without an error: for small images.
    tolerance: of the solver's steps, relative and absolute.

  Raises:
    ValueError: no probe.
  """
  if probes < 1:
    raise ValueError(f"probes {probes} of an attribution; use 1 or more")
  v = basis(x0.shape) if exact else jax.random.rademacher(rng, (probes, *x0.shape), jnp.float32)
  solve = functools.partial(_attribute, eps_all, log_weights, process, x0, v)
  found, solver = flow.attempt(solve, tolerance)
  if exact:
    found |= {"credit_error": 0 * found["credit"]}
  if solver == flow.OVERFLOW:
    found = {name: jnp.full_like(array, jnp.nan) for name, array in found.items()}
  return Attribution(**found, solver=solver)


def under(predict: Callable[..., Array], c: Array | np.ndarray | None) -> Callable[..., Array]:
  """A predictor with its conditions bound, a pytree whose leaves are both's."""
  return predict if c is None else jax.tree_util.Partial(_under, predict, jnp.asarray(c))


def _under(predict: Callable[..., Array], c: Array, x_t: Array, t: Array) -> Array:
  return predict(x_t, t, c)


def basis(shape: Sequence[int]) -> Float[Array, "d B H W C"]:
  """d probes sqrt(d) e_k of B images: the mean of v^T J v over them is the trace itself."""
  d = int(np.prod(shape[1:]))
  one = jnp.sqrt(float(d)) * jnp.eye(d).reshape(d, 1, *shape[1:])
  return jnp.broadcast_to(one, (d, *shape))


@functools.partial(jax.jit, static_argnames=("process", "tolerance"))
def _attribute(
  eps_all: Callable[[Array, Array], Array],
  log_weights: Callable[[Array, Array], Array],
  process: Diffusion,
  x0: Float[Array, "B H W C"],
  v: Float[Array, "P B H W C"],
  tolerance: float | None,
) -> tuple[dict[str, Array], Array]:
  """The arrays of an `Attribution`, and whether the solver came through."""
  axes, d = (-3, -2, -1), x0[0].size

  def rates(x_t: Array, t: Array, sigma: Array) -> tuple[Array, tuple[Array, Array]]:
    def weighted(x_t: Array) -> tuple[Array, Array]:
      w = jnp.exp(log_weights(x_t, t))
      return w.T[..., None, None, None] * eps_all(x_t, t), w

    each, tangent, w = jax.linearize(weighted, x_t, has_aux=True)
    traces = jnp.mean(v[:, None] * jax.vmap(tangent)(v), axes).swapaxes(1, 2)
    return each.sum(0), (sigma * traces, w)  # per dimension: the solver's tolerance is of that

  end = flow.follow(rates, process, x0, tolerance)
  of_probes, weights = d * end.integrals[0], end.integrals[1]
  parts = of_probes.mean(0)
  log_p_end = jnp.sum(jax.scipy.stats.norm.logpdf(end.x_T), axes)
  log_p = log_p_end + d * end.log_gamma_T + parts.sum(1)
  first, last = process.log_noise_to_signal()[[0, -1]]
  found = {
    "log_p": log_p,
    "log_p_end": log_p_end,
    "parts": parts,
    "credit": credits(parts),
    "credit_error": credit_error(of_probes),
    "weights": weights / (last - first),
  }
  return found, end.ok & jnp.isfinite(log_p).all()


def credits(parts: Float[Array, "B n"]) -> Float[Array, "B n"]:
  """C_i = L_i / sum_j L_j, and nan where the sum is nothing beside its terms."""
  total = parts.sum(1, keepdims=True)
  enough = jnp.abs(total) > CANCELLED * jnp.abs(parts).sum(1, keepdims=True)
  return jnp.where(enough, parts / total, jnp.nan)


def credit_error(of_probes: Float[Array, "P B n"]) -> Float[Array, "B n"]:
  """The standard error of C_i over the probes' own L_i, to first order; nan of a single probe."""
  parts = of_probes.mean(0)
  off = of_probes - credits(parts) * of_probes.sum(2, keepdims=True)  # of mean 0
  error = jnp.std(off, axis=0, ddof=1) / len(of_probes) ** 0.5
  return error / jnp.abs(parts.sum(1, keepdims=True))


def write_csv(
  path: pathlib.Path, names: Sequence[str], ids: Sequence[str], attribution: Attribution
) -> None:
  """One line for each image and source: id, source, L_i, C_i, its error, mean w_i; to the bit."""
  out = io.StringIO()
  rows = csv.writer(out, lineterminator="\n")
  rows.writerow(COLUMNS)
  columns = attribution.parts, attribution.credit, attribution.credit_error, attribution.weights
  values = np.stack(columns, axis=-1)
  for image, of_image in zip(ids, values, strict=True):
    for name, of_source in zip(names, of_image, strict=True):
      rows.writerow((image, name, *(f"{value:.9g}" for value in of_source)))
  writer.replace(path, out.getvalue())


def svgs(names: Sequence[str], ids: Sequence[str], attribution: Attribution) -> list[str]:
  """The chart of each image: every source's credit with its error, and below it its mean weight."""
  columns = attribution.credit, attribution.credit_error, attribution.weights
  rows = zip(ids, *map(np.asarray, columns), strict=True)
  return [
    charts.bars(i, names, {"credit": c, "trajectory weight": w}, {"credit": e})
    for i, c, e, w in rows
  ]
