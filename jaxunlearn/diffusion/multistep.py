"""Multistep samplers: second order from one evaluation of the network a step, by the ones before.

From the time t to the earlier s, without noise and without a clip of x0:

  PLMS              x_s = gamma_s / gamma_t x_t + (sigma_s - sigma_t gamma_s / gamma_t) e
                    the move of DDIM, where e is eps, then (3 eps - eps_1) / 2, then
                    (23 eps - 16 eps_1 + 5 eps_2) / 12, and from the fourth step on
                    (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24 (Adams and Bashforth); the first
                    move is done again, with the mean of eps at both its ends
  DPM-Solver++ 2M   x_s = sigma_s / sigma_t x_t + gamma_s (1 - exp(-h)) D
                    D = x0 + h / (2 h_1) (x0 - x0_1),  h = lambda_s - lambda_t,
                    lambda = log(gamma / sigma); D = x0 in the first step, and in the last, whose
                    sigma_s is 0

_1, _2, _3 are of one, two, three steps before. PLMS is of Liu et al. (2022, arXiv 2202.09778), in
the form that Stable Diffusion takes: no Runge-Kutta steps to begin with. DPM-Solver++ is of Lu et
al. (2022, arXiv 2211.01095), Algorithm 2. Both walk as diffusers' schedulers do: PLMS from t to
t - T // steps, like DDIM; DPM-Solver++ from each time to the next, where the times are even in t
and the paper's in lambda. Its last step starts from about t = T / steps and is of first order.

Every move is a sum of x_t and of what the network said at this call and up to four before, so a
sampler is a table of those coefficients (float64, once) and one scan over it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxunlearn.diffusion import Diffusion, EpsFn, held
from jaxunlearn.diffusion.options import DEFAULT, Options, times

ADAMS = (  # the weights of eps and of those before, by order
  np.array([1]),
  np.array([3, -1]) / 2,
  np.array([23, -16, 5]) / 12,
  np.array([55, -59, 37, -9]) / 24,
)


class Calls(NamedTuple):
  """One row a call of the network: what it says there, and what the next x takes of all this.

  The network says  v = of_x x_t + of_eps eps,  which is eps or x0.
  """

  t: Int[np.ndarray, " N"]
  of_x: Float[np.ndarray, " N"]
  of_eps: Float[np.ndarray, " N"]
  x_t: Float[np.ndarray, " N"]
  said: Float[np.ndarray, "N K"]  # of v, and of the K - 1 before it, the newest first


def plms(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  steps: int = 50,
  options: Options = DEFAULT,
) -> Float[Array, "B H W C"]:
  """Samples from the noise x_T by steps + 1 calls of the network; `rng` has no part in it.

  Raises:
    ValueError: steps outside 1..T, or times past T - 1.
  """
  del rng
  return _walk(eps_fn, x_T, c, _plms_calls(process, times(process, steps, options), options))


def dpm(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  steps: int = 20,
  options: Options = DEFAULT,
) -> Float[Array, "B H W C"]:
  """Samples from the noise x_T by DPM-Solver++ 2M; `rng` has no part in it.

  Its times are one more than the steps, of which the last is not visited: the last step ends
  without noise, whatever `set_alpha_to_one`. Trailing times are as for the others.

  Raises:
    ValueError: steps outside 1..T - 1 (trailing: T), or times past T - 1.
  """
  del rng
  return _walk(eps_fn, x_T, c, _dpm_calls(process, times(process, steps, options, beyond=1)))


def _plms_calls(process: Diffusion, t: np.ndarray, options: Options) -> Calls:
  """Calls at t_0, t_1, t_1, t_2, t_3, ...; the second corrects the first move, then is dropped."""
  steps, ratio = len(t), process.T // len(t)
  x_t, eps = _ddim_moves(process, t, t - ratio, options)
  kept = np.append(0, np.arange(2, steps + 1))  # the calls whose eps later moves take
  moves, said = np.ones(kept[-1] + 1), np.zeros((kept[-1] + 1, 5))
  moves[kept] = x_t
  for i, call in enumerate(kept):
    weights = ADAMS[min(i, 3)]
    said[call, call - kept[i - np.arange(len(weights))]] = eps[i] * weights
  if steps > 1:  # x = b_x x_T + b_eps (eps_0 + eps) / 2, and x_T = (x_t - eps[0] eps_0) / x_t[0]
    ((b_x,), (b_eps,)) = _ddim_moves(process, t[1:2] + ratio, t[1:2], options)
    moves[1] = b_x / x_t[0]
    said[1, :2] = b_eps / 2, b_eps / 2 - moves[1] * eps[0]
  at = np.append(t[:2], t[1:])
  return Calls(at, np.zeros(len(at)), np.ones(len(at)), moves, said)


def _ddim_moves(
  process: Diffusion, t: np.ndarray, s: np.ndarray, options: Options
) -> tuple[np.ndarray, np.ndarray]:
  """What x_s takes of x_t and of eps; before the time 0 abar is as `set_alpha_to_one` says."""
  last = 1.0 if options.set_alpha_to_one else process.abar[0]
  abar, abar_s = process.abar[t], np.where(s >= 0, process.abar[np.maximum(s, 0)], last)
  x_t = np.sqrt(abar_s / abar)
  return x_t, np.sqrt(1 - abar_s) - np.sqrt(1 - abar) * x_t


def _dpm_calls(process: Diffusion, t: np.ndarray) -> Calls:
  abar, log_ratio = process.abar[t], process.log_noise_to_signal()[t]
  gamma, sigma = np.sqrt(abar), np.sqrt(1 - abar)
  gamma_s, sigma_s = np.append(gamma[1:], 1), np.append(sigma[1:], 0)
  x0 = gamma_s - sigma_s * gamma / sigma  # gamma_s (1 - exp(-h))
  h = log_ratio[:-1] - log_ratio[1:]
  more = np.zeros(len(t))
  more[1:-1] = h[1:] / (2 * h[:-1])
  said = np.stack([x0 * (1 + more), -x0 * more], axis=1)
  return Calls(t, 1 / gamma, -sigma / gamma, sigma_s / sigma, said)


def _walk(eps_fn: EpsFn, x: Array, c: Array | None, calls: Calls) -> Array:
  """Walks x down the table."""

  def call(state: tuple[Array, tuple[Array, ...], Any], k: Calls) -> tuple[Any, None]:
    x_t, before, carried = state
    eps, carried = held.call(eps_fn, carried, x_t, jnp.full(len(x_t), k.t), c)
    values = (k.of_x * x_t + k.of_eps * eps, *before)
    taken = [weight * value for weight, value in zip(k.said, values, strict=True)]
    return (sum(taken, k.x_t * x_t), values[:-1], carried), None

  x = jnp.asarray(x, jnp.float32)
  before = (jnp.zeros_like(x),) * (calls.said.shape[1] - 1)
  table = jax.tree.map(np.float32, calls)._replace(t=np.int32(calls.t))
  return jax.lax.scan(call, (x, before, held.first(eps_fn, x)), table)[0][0]
