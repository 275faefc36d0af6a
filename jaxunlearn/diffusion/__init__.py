"""The diffusion process, in the letters of Ho et al. (2020) and Alberti et al. (2025).

    q(x_t | x) = N(gamma_t x, sigma_t^2 I),   gamma_t = sqrt(abar_t),   sigma_t = sqrt(1 - abar_t)

(Alberti et al. print sigma_t for the variance.) Images are [B, H, W, C] in [-1, 1], times are [B];
broadcasting one against the other happens here and nowhere else. A network predicts eps; some
predict v = gamma_t eps - sigma_t x (Salimans and Ho, 2022), from which `noise_of` makes eps.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxunlearn import errors
from jaxunlearn.inputs import ranges

NULL = -1  # the value of a condition that is not given: its learned null


@runtime_checkable
class EpsFn(Protocol):
  """A noise predictor with its parameters bound: (x_t [B,H,W,C], t [B], c) -> eps [B,H,W,C].

  t is int32 in 0..T-1; the probability-flow ODE also asks at float32 times in between. c is the
  condition, int32 [B] (or [B, n] of n conditions), or None where the model has none.
  """

  def __call__(self, x_t: Array, t: Array, c: Array | None = None) -> Array: ...


def _linear(T: int, first: float, last: float) -> np.ndarray:
  return np.linspace(first, last, T)


def _scaled_linear(T: int, first: float, last: float) -> np.ndarray:
  """Linear in sqrt(beta), as latent diffusion has it."""
  return np.linspace(first**0.5, last**0.5, T) ** 2.0


def _sigmoid(T: int, first: float, last: float) -> np.ndarray:
  return first + (last - first) / (1 + np.exp(-np.linspace(-6, 6, T)))


def _cosine(T: int, first: float, last: float) -> np.ndarray:
  """abar = cos^2, by Nichol and Dhariwal (2021); beta_1 and beta_T have no part in it."""
  del first, last
  root = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2)
  return np.minimum(1 - (root[1:] / root[:-1]) ** 2, 0.999)


SCHEDULES: dict[str, Callable[[int, float, float], np.ndarray]] = {
  "linear": _linear,
  "scaled_linear": _scaled_linear,
  "squaredcos_cap_v2": _cosine,
  "sigmoid": _sigmoid,
}


PREDICTIONS = ("epsilon", "v_prediction")


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """A DDPM's forward process over the times 0 .. T-1."""

  schedule: str = "linear"  # one of SCHEDULES, from beta_1 to beta_T
  T: Annotated[int, ranges.Range(1, 10**6, whole=True)] = 1000
  beta_1: ranges.Inside1 = 1e-4
  beta_T: ranges.Inside1 = 0.02
  betas: Sequence[ranges.Inside1] = ()  # all T of them, in the place of a schedule
  prediction: str = "epsilon"  # what the network gives: epsilon, or v_prediction

  def __post_init__(self) -> None:
    object.__setattr__(self, "betas", tuple(self.betas))
    errors.check_choice("schedule", self.schedule, SCHEDULES)
    errors.check_choice("prediction", self.prediction, PREDICTIONS)
    ranges.check(self)
    if self.betas and len(self.betas) != self.T:
      raise ValueError(f"{len(self.betas)} betas for T {self.T} times; give one for each")
    if not 0 < self.beta_1 <= self.beta_T < 1:
      raise ValueError(
        f"beta_1 {self.beta_1} and beta_T {self.beta_T}: use 0 < beta_1 <= beta_T < 1"
      )

  @functools.cached_property
  def abar(self) -> np.ndarray:
    """abar_t for t in 0..T-1, float64: the cumulative product of 1 - beta_t."""
    made = lambda: SCHEDULES[self.schedule](self.T, self.beta_1, self.beta_T)
    return np.cumprod(1 - (np.array(self.betas) if self.betas else made()))

  def gamma(self, t: Int[Array, " B"]) -> Float[Array, "B 1 1 1"]:
    return _at(np.sqrt(self.abar), t)

  def sigma(self, t: Int[Array, " B"]) -> Float[Array, "B 1 1 1"]:
    return _at(np.sqrt(1 - self.abar), t)

  def sample_t(self, rng: Shaped[Array, "..."], n: int) -> Int[Array, " n"]:
    """n times, independent and uniform over 0..T-1."""
    return jax.random.randint(rng, (n,), 0, self.T)

  def stratified_t(self, rng: Shaped[Array, "..."], n: int) -> Int[Array, " n"]:
    """n ascending times, one in each n-th of 0..T-1 and uniform there: together uniform."""
    u = jax.random.uniform(rng, (n,))
    return jnp.minimum((jnp.arange(n) + u) * (self.T / n), self.T - 1).astype(jnp.int32)

  def q_sample(self, x: Array, t: Array, eps: Array) -> Array:
    """x_t = gamma_t x + sigma_t eps."""
    return self.gamma(t) * x + self.sigma(t) * eps

  def eps(self, x_t: Array, x: Array, t: Array) -> Array:
    """The noise that carries x to x_t."""
    return (x_t - self.gamma(t) * x) / self.sigma(t)

  def x0(self, x_t: Array, t: Array, eps: Array) -> Array:
    """The image that noise eps carries to x_t."""
    return (x_t - self.sigma(t) * eps) / self.gamma(t)

  def noise_of(self, output: Array, x_t: Array, t: Array) -> Array:
    """The noise that a network's output stands for: eps = gamma_t v + sigma_t x_t of a v."""
    if self.prediction == "epsilon":
      return output
    if not jnp.issubdtype(t.dtype, jnp.floating):
      return self.gamma(t) * output + self.sigma(t) * x_t
    table = jnp.asarray(self.log_noise_to_signal(), jnp.float32)  # between the times, as flow.py
    log_ratio = jnp.interp(t, jnp.arange(self.T, dtype=jnp.float32), table).reshape(-1, 1, 1, 1)
    gamma = jax.lax.rsqrt(1 + jnp.exp(2 * log_ratio))
    return gamma * output + jnp.exp(log_ratio) * gamma * x_t

  def predictor(self, apply: Callable[..., Any]) -> Callable[..., Any]:
    """(params, x_t, t, c) -> eps of a network's `apply`; the same object for the same two."""
    return apply if self.prediction == "epsilon" else _predictor(self, apply)

  def log_q_ratio(self, m_t: Array, a: Array, x: Array, t: Array) -> Float[Array, " B"]:
    """log q(m_t|a) - log q(m_t|x) = (gamma/sigma^2) <a - x, m_t - gamma (x + a)/2>, per example.

    One reduction: the difference of the two squared norms would cancel badly in float32.
    """
    gamma = self.gamma(t)
    inner = jnp.sum((a - x) * (m_t - gamma * (x + a) / 2), axis=(1, 2, 3))
    return (gamma / self.sigma(t) ** 2)[:, 0, 0, 0] * inner

  def log_noise_to_signal(self) -> np.ndarray:
    """log(sigma_t / gamma_t) for t in 0..T-1, float64: the time of the probability-flow ODE."""
    return 0.5 * (np.log1p(-self.abar) - np.log(self.abar))


def _at(table: np.ndarray, t: Array) -> Array:
  return jnp.asarray(table, jnp.float32)[t].reshape(-1, 1, 1, 1)


@functools.cache
def _predictor(process: Diffusion, apply: Callable[..., Any]) -> Callable[..., Any]:
  def noise(params: Any, x_t: Array, t: Array, c: Any = None, **rest: Any) -> Array:
    return process.noise_of(apply(params, x_t, t, c, **rest), x_t, t)

  return noise
