"""Samplers over any noise predictor: DDPM (Ho et al., 2020), DDIM (Song et al., 2021), injection.

From the time t to the earlier s (abar_s = 1 after the last step), with z ~ N(0, I):

    x0   = (x_t - sigma_t eps) / gamma_t, clipped;    eps = (x_t - gamma_t x0) / sigma_t
    beta = 1 - abar_t / abar_s,   v = beta (1 - abar_s) / (1 - abar_t)
    DDPM   x_s = gamma_s beta / sigma_t^2 x0 + sqrt(1 - beta) sigma_s^2 / sigma_t^2 x_t + sqrt(v) z
    DDIM   x_s = gamma_s x0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z

The eps that DDIM goes on with is that of the clipped x0, as under use_clipped_model_output of
diffusers. With the network's own, diffusers' default, pictures of digits get greyer at every step.

Both are sums of x0, x_t, eps and z, so a sampler is a table of those coefficients (float64, once)
and one scan over it. `Options` are what diffusers' schedulers vary, under their names. Where they
go: DDPM from each time to the next in the list, DDIM from t to t - T // steps. `SAMPLERS` are these
two and those of multistep.py.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion, EpsFn, held, multistep
from jaxunlearn.diffusion.options import DEFAULT, Options, times


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
  options: Options = DEFAULT,
) -> Float[Array, "B H W C"]:
  """Ancestral samples from the noise x_T.

  Raises:
    ValueError: steps outside 1..T, or times past T - 1.
  """
  table = _ddpm_steps(process, times(process, steps, options), options)
  return _reverse(eps_fn, rng, x_T, c, table, options)


def ddim(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  steps: int = 50,
  eta: float = 0.0,
  options: Options = DEFAULT,
) -> Float[Array, "B H W C"]:
  """Samples from the noise x_T: deterministic at eta 0, as random as DDPM at eta 1.

  Raises:
    ValueError: steps outside 1..T, times past T - 1, eta outside [0, 1].
  """
  if not 0 <= eta <= 1:
    raise ValueError(f"eta {eta} is outside [0, 1]; use 0 for DDIM and 1 for DDPM's variance")
  table = _ddim_steps(process, times(process, steps, options), steps, eta, options)
  return _reverse(eps_fn, rng, x_T, c, table, options)


@functools.partial(jax.jit, static_argnames=("process", "t", "n", "options"))
def inject(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x: Float[Array, "B H W C"],
  t: int,
  c: Array | None = None,
  *,
  n: int = 16,
  options: Options = DEFAULT,
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
  table = _ddpm_steps(process, np.arange(t, -1, -1), options)
  out = _reverse(eps_fn, k_steps, x_t, c, table, options)
  return out.reshape(len(x), n, *x.shape[1:])


@functools.partial(jax.jit, static_argnames=("process", "steps", "options"))
def watched(
  predict: Callable[..., tuple[Array, Any]],
  process: Diffusion,
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  steps: int = 50,
  options: Options = DEFAULT,
) -> tuple[Float[Array, "B H W C"], Any]:
  """DDIM samples, and what was seen at each step: `predict(x_t, t, c)` is (eps, seen).

  `predict` is a `jax.tree_util.Partial`, as for `sample`.

  Raises:
    ValueError: steps outside 1..T, or times past T - 1.
  """
  table = _ddim_steps(process, times(process, steps, options), steps, 0.0, options)

  def at(carried: Any, x_t: Array, t: Array) -> tuple[Array, Any, Any]:
    eps, seen = predict(x_t, t, c)
    return eps, carried, seen

  return _walk(at, (), jax.random.key(0), x_T, table, options)


@functools.partial(jax.jit, static_argnames=("process", "t", "steps", "options"))
def complete(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x: Float[Array, "B H W C"],
  t: int,
  c: Array | None = None,
  *,
  steps: int = 50,
  options: Options = DEFAULT,
) -> Float[Array, "B H W C"]:
  """x noised to the latest of DDIM's times that is not after t, and denoised from there.

  `steps` are those of the whole way down, of which the last ones are made.

  Raises:
    ValueError: as `ddim`; no time is left.
  """
  down = times(process, steps, options)
  down = down[down <= t]
  if not len(down):
    raise ValueError(f"t {t} is before the last of {steps} steps; use a later one, or more steps")
  k_noise, k_steps = jax.random.split(rng)
  noise = jax.random.normal(k_noise, x.shape)
  x_t = process.q_sample(x, jnp.full(len(x), down[0]), noise)
  table = _ddim_steps(process, down, steps, 0.0, options)
  return _reverse(eps_fn, k_steps, x_t, c, table, options)


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "plms": multistep.plms, "dpm": multistep.dpm}


def calls(sampler: str, steps: int) -> int:
  """How often a sampler asks the network in so many steps."""
  return steps + (sampler == "plms" and steps > 1)


@functools.partial(jax.jit, static_argnames=("process", "sampler", "steps", "options"))
def sample(
  eps_fn: EpsFn,
  process: Diffusion,
  rng: Shaped[Array, "..."],
  x_T: Float[Array, "B H W C"],
  c: Array | None = None,
  *,
  sampler: str,
  steps: int,
  options: Options = DEFAULT,
) -> Float[Array, "B H W C"]:
  """Samples from the noise x_T by the sampler of that name.

  `eps_fn` is a `jax.tree_util.Partial`; one compilation serves every checkpoint of a model.

  Raises:
    ValueError: no such sampler, steps outside 1..T.
  """
  errors.check_choice("sampler", sampler, SAMPLERS)
  return SAMPLERS[sampler](eps_fn, process, rng, x_T, c, steps=steps, options=options)


def check(process: Diffusion, sampler: str, steps: int, options: Options = DEFAULT) -> None:
  """Raises ValueError where `sample` would, before there is a network."""
  eps_fn = jax.tree_util.Partial(lambda x_t, t, c=None: x_t)
  walk = functools.partial(sample, sampler=sampler, steps=steps, options=options)
  x_T = jax.ShapeDtypeStruct((1, 1, 1, 1), np.float32)
  jax.eval_shape(lambda x: walk(eps_fn, process, jax.random.key(0), x), x_T)


def _ddpm_steps(process: Diffusion, t: np.ndarray, options: Options) -> Steps:
  abar, abar_s, beta, v = _schedule(process, t, np.append(t[1:], -1), 1.0)
  x0 = np.sqrt(abar_s) * beta / (1 - abar)
  x_t = np.sqrt(1 - beta) * (1 - abar_s) / (1 - abar)
  z = np.sqrt(beta if options.variance_type == "fixed_large" else v) * (t > 0)
  return Steps(t, np.sqrt(abar), np.sqrt(1 - abar), x0, x_t, np.zeros(len(t)), z)


def _ddim_steps(
  process: Diffusion, t: np.ndarray, steps: int, eta: float, options: Options
) -> Steps:
  last = 1.0 if options.set_alpha_to_one else process.abar[0]
  abar, abar_s, _, v = _schedule(process, t, t - process.T // steps, last)
  eps = np.sqrt(1 - abar_s - eta**2 * v)
  z = eta * np.sqrt(v)
  return Steps(t, np.sqrt(abar), np.sqrt(1 - abar), np.sqrt(abar_s), np.zeros(len(t)), eps, z)


def _schedule(
  process: Diffusion, t: np.ndarray, s: np.ndarray, last: float
) -> tuple[np.ndarray, ...]:
  """abar_t, abar_s, beta and v for steps from t to s; abar_s is `last` where s is negative."""
  abar = process.abar[t]
  abar_s = np.where(s >= 0, process.abar[np.maximum(s, 0)], last)
  beta = 1 - abar / abar_s
  return abar, abar_s, beta, beta * (1 - abar_s) / (1 - abar)


def _reverse(
  eps_fn: EpsFn, rng: Array, x: Array, c: Array | None, steps: Steps, options: Options
) -> Array:
  """Walks x down the table."""
  at = lambda carried, x_t, t: (*held.call(eps_fn, carried, x_t, t, c), None)
  return _walk(at, held.first(eps_fn, x), rng, x, steps, options)[0]


def _walk(
  at: Callable[..., tuple[Array, Any, Any]],
  first: Any,
  rng: Array,
  x: Array,
  steps: Steps,
  options: Options,
) -> tuple[Array, Any]:
  """Where x ends, and what was seen: `at(carried, x_t, t)` is (eps, carried on, seen).

  The noise of a step depends on rng and t, not on the table.
  """

  def step(state: tuple[Array, Any], k: Steps) -> tuple[tuple[Array, Any], Any]:
    x_t, carried = state
    eps, carried, seen = at(carried, x_t, jnp.full(len(x_t), k.t))
    x0 = (x_t - k.sigma * eps) / k.gamma
    if options.clip_sample:
      x0 = jnp.clip(x0, -options.clip_sample_range, options.clip_sample_range)
      if options.use_clipped_model_output:
        eps = (x_t - k.gamma * x0) / k.sigma
    z = jax.random.normal(jax.random.fold_in(rng, k.t), x_t.shape)
    return (k.x0 * x0 + k.x_t * x_t + k.eps * eps + k.z * z, carried), seen

  table = jax.tree.map(np.float32, steps)._replace(t=np.int32(steps.t))
  (x, _), seen = jax.lax.scan(step, (jnp.asarray(x, jnp.float32), first), table)
  return x, seen
