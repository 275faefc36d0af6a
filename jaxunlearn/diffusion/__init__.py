"""The diffusion process, in the letters of Ho et al. (2020) and Alberti et al. (2025).

    q(x_t | x) = N(gamma_t x, sigma_t^2 I),   gamma_t = sqrt(abar_t),   sigma_t = sqrt(1 - abar_t)

(Alberti et al. print sigma_t for the variance.) Images are [B, H, W, C] in [-1, 1], times are [B];
broadcasting one against the other happens here and nowhere else.
"""

import dataclasses
import functools
from typing import Annotated, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxunlearn import errors, ranges

SCHEDULES = ("linear", "scaled_linear")
NULL = -1  # the value of a condition that is not given: its learned null


@runtime_checkable
class EpsFn(Protocol):
  """A noise predictor with its parameters bound: (x_t [B,H,W,C], t [B], c) -> eps [B,H,W,C].

  t is int32 in 0..T-1; the probability-flow ODE also asks at float32 times in between. c is the
  condition, int32 [B] (or [B, n] of n conditions), or None where the model has none.
  """

  def __call__(self, x_t: Array, t: Array, c: Array | None = None) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """A DDPM's forward process over the times 0 .. T-1."""

  schedule: str = "linear"  # linear in beta, or scaled_linear: linear in sqrt(beta)
  T: Annotated[int, ranges.Range(1, 10**6, whole=True)] = 1000
  beta_1: ranges.Inside1 = 1e-4
  beta_T: ranges.Inside1 = 0.02

  def __post_init__(self) -> None:
    errors.check_choice("schedule", self.schedule, SCHEDULES)
    if not 0 < self.beta_1 <= self.beta_T < 1:
      raise ValueError(
        f"beta_1 {self.beta_1} and beta_T {self.beta_T}: use 0 < beta_1 <= beta_T < 1"
      )

  @functools.cached_property
  def abar(self) -> np.ndarray:
    """abar_t for t in 0..T-1, float64: the cumulative product of 1 - beta_t."""
    power = 1.0 if self.schedule == "linear" else 0.5
    betas = np.linspace(self.beta_1**power, self.beta_T**power, self.T) ** (1 / power)
    return np.cumprod(1 - betas)

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
