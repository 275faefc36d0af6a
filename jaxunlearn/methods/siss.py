"""SISS, subtracted importance sampled scores (Alberti et al., ICLR 2025, arXiv 2503.01034).

    q_lam(m_t | x, a) = (1 - lam) q(m_t | x) + lam q(m_t | a)      x ~ X\\A kept, a ~ A to unlearn
    w_x = q(m_t | x) / q_lam,   eps_x = (m_t - gamma_t x) / sigma_t,   w_a and eps_a likewise
    L = E [w_x ||eps_x - eps_theta(m_t, t)||^2] - s' E [w_a ||eps_a - eps_theta(m_t, t)||^2]

One forward pass at m_t serves both terms; s' is what gives the forget gradient its norm: the step
is g_x - c g_a, `methods.subtract_scaled`. With r = log q(m_t | a) - log q(m_t | x), in logs,

    log w_x = -log((1 - lam) + lam e^r),   log w_a = -log((1 - lam) e^-r + lam)

Deviations from the paper, all of the same expected gradient to float32:
  - stratified (a field) draws one t in each B-th of the range, and picks x or a by systematic
    sampling, so that the counts are exact and each row is an a with probability lam: less variance.
  - A row whose share e^r / (1 + e^r), or its complement for x, is under skip_below (a field) drops
    out of that term. With lam = 0 a batch may have no such row: then no forget step is taken.
  - Rows are ordered by r, pure x first and pure a last. The weights do not depend on theta, so
    that a micro-batch of pure rows is known to need one of the two backward passes only.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  lam: ranges.Share = 0.5  # the share of rows that are a noised a
  forget_norm: ranges.Above0 | None = None  # ||c g_a||, the paper's scaling_norm; None: relative
  forget_ratio: ranges.Above0 = 0.1  # ||c g_a|| / ||g_x||, where forget_norm is None
  stratified: bool = True
  skip_below: Annotated[float, ranges.Range(0.0, 0.5, under=True)] = 1e-8

  streams = ("x", "a")
  terms = ("x", "a")
  backwards = 2

  def draw(self, process, batch, rng, extras, step):
    x, a = batch["x"], batch["a"]
    k_t, k_pick, k_eps = jax.random.split(rng, 3)
    t, from_a = self._times_and_picks(process, k_t, k_pick, len(x.image))
    picked = lambda c_x, c_a: jnp.where(from_a.reshape(-1, *[1] * (c_x.ndim - 1)), c_a, c_x)
    draws = {
      "x": x.image,
      "a": a.image,
      "c": None if x.c is None else picked(x.c, a.c),
      "t": t,
      "eps": jax.random.normal(k_eps, x.image.shape),
      "from_a": from_a,
    }
    order = jnp.argsort(mixture(process, draws)[1])
    return jax.tree.map(lambda rows: jnp.take(rows, order, axis=0), draws)

  def _times_and_picks(self, process, k_t, k_pick, n):
    if not self.stratified:
      return process.sample_t(k_t, n), jax.random.bernoulli(k_pick, self.lam, (n,))
    picked = jnp.floor(jnp.arange(n + 1) * self.lam + jax.random.uniform(k_pick))
    return process.stratified_t(k_t, n), jnp.diff(picked) > 0

  def losses(self, eps_fn, process, draws, extras):
    m_t, r = mixture(process, draws)
    eps_hat = eps_fn(m_t, draws["t"], draws["c"])

    def term(y, log_w, keep):
      w = jnp.where(keep, jnp.exp(log_w), 0)
      # A row of weight 0 is masked before it is squared: 0 * inf is not 0.
      used = (w > 0)[:, None, None, None]
      eps_y = jnp.where(used, process.eps(m_t, y, draws["t"]), 0)
      error = methods.squared_error(eps_y, jnp.where(used, eps_hat, 0))
      return jnp.mean(w * error), jnp.mean(w)

    (log_w_x, log_w_a), (keep_x, keep_a) = log_weights(r, self.lam), self._kept(r)
    loss_x, w_x = term(draws["x"], log_w_x, keep_x)
    loss_a, w_a = term(draws["a"], log_w_a, keep_a)
    return (loss_x, loss_a), {"w_x": w_x, "w_a": w_a, "both": jnp.mean(keep_x & keep_a)}

  def needed(self, process, draws):
    keep_x, keep_a = self._kept(mixture(process, draws)[1])
    return jnp.any(keep_x), jnp.any(keep_a)

  def _kept(self, r):
    """Which rows each term keeps: 1 / (1 + e^r) and 1 / (1 + e^-r) are at least skip_below."""
    limit = math.log(1 / self.skip_below - 1) if self.skip_below else math.inf
    return r <= limit, r >= -limit

  def combine(self, grads, extras):
    return methods.subtract_scaled(*grads, self.forget_norm, self.forget_ratio)


def log_weights(r, lam):
  """log w_x and log w_a from r = log q(m_t | a) - log q(m_t | x)."""
  log_x = math.log1p(-lam) if lam < 1 else -math.inf
  log_a = math.log(lam) if lam > 0 else -math.inf
  return -jnp.logaddexp(log_x, log_a + r), -jnp.logaddexp(log_x - r, log_a)


def mixture(process, draws):
  """m_t ~ q_lam: the noised x or a that was picked, and its r."""
  x, a, t = draws["x"], draws["a"], draws["t"]
  m_0 = jnp.where(draws["from_a"][:, None, None, None], a, x)
  m_t = process.q_sample(m_0, t, draws["eps"])
  return m_t, process.log_q_ratio(m_t, a, x, t)
