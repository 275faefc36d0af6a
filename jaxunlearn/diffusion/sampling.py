"""Samplers over any noise predictor: DDPM (Ho et al., 2020), DDIM (Song et al., 2021), injection.

From the time t to the earlier s (abar_s = 1 after the last step), with z ~ N(0, I):

    x0   = (x_t - sigma_t eps) / gamma_t, clipped to [-1, 1]
    beta = 1 - abar_t / abar_s,   v = beta (1 - abar_s) / (1 - abar_t)
    DDPM   x_s = gamma_s beta / sigma_t^2 x0 + sqrt(1 - beta) sigma_s^2 / sigma_t^2 x_t + sqrt(v) z
    DDIM   x_s = gamma_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z

Both are sums of x0, x_t, eps and z, so a sampler is a table of those coefficients (float64, once)
and one scan over it. The times are those of diffusers' "leading" spacing: multiples of T // steps.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion, EpsFn


class Steps(NamedTuple):
  """One row a reverse step: its time, and what x_s takes of x0, x_t, eps and z."""

  t: Int[np.ndarray, " S"]
  gamma: Float[np.ndarray, " S"]
  sigma: Float[np.ndarray, " S"]
  x0: Float[np.ndarray, " S"]
  x_t: Float[np.ndarray, " S"]
  eps: Float[np.ndarray, " S"]
  z: Float[np.ndarray, " S"]


def ddpm(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  steps: int = 1000,
  clip: bool = True,
) -> Float[Array, "B H W C"]:
  """Ancestral samples from the noise x_T, with the smaller of DDPM's two variances.

  Raises:
    ValueError: steps outside 1..T.
  """
  return _reverse(eps_fn, rng, x_T, c, _ddpm_steps(process, _leading(process, steps)), clip)


def ddim(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  steps: int = 50,
  eta: float = 0.0,
  clip: bool = True,
) -> Float[Array, "B H W C"]:
  """Samples from the noise x_T: deterministic at eta 0, as random as DDPM at eta 1.

  Raises:
    ValueError: steps outside 1..T, eta outside [0, 1].
  """
  if not 0 <= eta <= 1:
    raise ValueError(f"eta {eta} is outside [0, 1]; use 0 for DDIM and 1 for DDPM's variance")
  return _reverse(eps_fn, rng, x_T, c, _ddim_steps(process, _leading(process, steps), eta), clip)


@functools.partial(jax.jit, static_argnames=("process", "t", "n", "clip"))
def inject(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x: Float[Array, "B H W C"],
  t: int,
  c: Array | None = None,
  *,
  n: int = 16,
  clip: bool = True,
) -> Float[Array, "B n H W C"]:
  """What the model makes of x: noised once to the time t, then denoised n times from there.

  The copy protocol of Alberti et al. (2025): stochastic DDPM over all t + 1 steps. `eps_fn` is a
  `jax.tree_util.Partial`; one compilation serves every checkpoint of a model.

  Raises:
    ValueError: t outside 0..T-1, n below 1.
  """
  if not 0 <= t < process.T:
    raise ValueError(f"t {t} is outside 0..{process.T - 1}, the times of the process; use one")
  if n < 1:
    raise ValueError(f"n {n} denoised copies of an image; use 1 or more")
  k_noise, k_steps = jax.random.split(rng)
  x_t = process.q_sample(x, jnp.full(len(x), t), jax.random.normal(k_noise, x.shape))
  x_t, c = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), (x_t, c))
  out = _reverse(eps_fn, k_steps, x_t, c, _ddpm_steps(process, np.arange(t, -1, -1)), clip)
  return out.reshape(len(x), n, *x.shape[1:])


SAMPLERS = {"ddpm": ddpm, "ddim": ddim}


@functools.partial(jax.jit, static_argnames=("process", "sampler", "steps"))
def sample(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  sampler: str,
  steps: int,
) -> Float[Array, "B H W C"]:
  """Samples from the noise x_T by the sampler of that name, clipped.

  `eps_fn` is a `jax.tree_util.Partial`; one compilation serves every checkpoint of a model.

  Raises:
    ValueError: no such sampler, steps outside 1..T.
  """
  errors.check_choice("sampler", sampler, SAMPLERS)
  return SAMPLERS[sampler](eps_fn, process, rng, x_T, c, steps=steps)


def _leading(process: Diffusion, steps: int) -> np.ndarray:
  if not 1 <= steps <= process.T:
    raise ValueError(f"steps {steps} is outside 1..{process.T}, the steps of the process; use one")
  return np.arange(steps)[::-1] * (process.T // steps)


def _ddpm_steps(process: Diffusion, t: np.ndarray) -> Steps:
  abar, abar_s, beta, v = _schedule(process, t)
  x0 = np.sqrt(abar_s) * beta / (1 - abar)
  x_t = np.sqrt(1 - beta) * (1 - abar_s) / (1 - abar)
  return Steps(t, np.sqrt(abar), np.sqrt(1 - abar), x0, x_t, np.zeros(len(t)), np.sqrt(v))


def _ddim_steps(process: Diffusion, t: np.ndarray, eta: float) -> Steps:
  abar, abar_s, _, v = _schedule(process, t)
  eps = np.sqrt(1 - abar_s - eta**2 * v)
  z = eta * np.sqrt(v)
  return Steps(t, np.sqrt(abar), np.sqrt(1 - abar), np.sqrt(abar_s), np.zeros(len(t)), eps, z)


def _schedule(process: Diffusion, t: np.ndarray) -> tuple[np.ndarray, ...]:
  """abar_t, abar_s, beta and v for descending times t, each followed by the next."""
  abar = process.abar[t]
  abar_s = np.append(abar[1:], 1.0)
  beta = 1 - abar / abar_s
  return abar, abar_s, beta, beta * (1 - abar_s) / (1 - abar)


def _reverse(
  eps_fn: EpsFn, rng: Array, x: Array, c: Array | None, steps: Steps, clip: bool
) -> Array:
  """Walks x down the table. The noise of a step depends on rng and t, not on the table."""

  def step(x_t: Array, k: Steps) -> tuple[Array, None]:
    eps = eps_fn(x_t, jnp.full(len(x_t), k.t), c)
    x0 = (x_t - k.sigma * eps) / k.gamma
    if clip:
      x0 = jnp.clip(x0, -1, 1)
    z = jax.random.normal(jax.random.fold_in(rng, k.t), x_t.shape)
    return k.x0 * x0 + k.x_t * x_t + k.eps * eps + k.z * z, None

  table = jax.tree.map(np.float32, steps)._replace(t=np.int32(steps.t))
  return jax.lax.scan(step, jnp.asarray(x, jnp.float32), table)[0]
