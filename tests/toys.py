"""Toys with closed forms: the exact noise predictor of a Gaussian mixture."""

import jax
import jax.numpy as jnp

from jaxunlearn.diffusion import Diffusion, EpsFn


def mixture_eps_fn(process: Diffusion, means, std, weights) -> EpsFn:
  """The exact eps of x ~ sum_k w_k N(mu_k, std^2 I), with means [K, H, W, C] and weights [K].

  x_t has the variance v = gamma^2 std^2 + sigma^2 around gamma mu_k, and eps = -sigma score:
  eps = sigma / v (x_t - gamma sum_k r_k mu_k), where r_k is the posterior share of mode k.
  A float t between two times interpolates log(sigma / gamma) linearly. std may be 0. The condition
  is ignored.
  """
  arrays = (process.log_noise_to_signal(), means, std, weights)
  return jax.tree_util.Partial(_mixture_eps, *(jnp.asarray(a, jnp.float32) for a in arrays))


def _mixture_eps(log_ratio, means, std, weights, x_t, t, c=None):
  del c
  log_r = jnp.interp(jnp.asarray(t, jnp.float32), jnp.arange(len(log_ratio)), log_ratio)
  gamma, sigma = (jnp.sqrt(jax.nn.sigmoid(s * log_r)).reshape(-1, 1, 1, 1) for s in (-2, 2))
  v = (gamma * std) ** 2 + sigma**2
  distance = jnp.sum((x_t[:, None] - gamma[:, None] * means) ** 2, axis=(2, 3, 4))
  share = jax.nn.softmax(jnp.log(weights) - distance / (2 * v[:, 0, 0]), axis=1)
  mean = jnp.einsum("bk,khwc->bhwc", share, means, precision="highest")
  return sigma / v * (x_t - gamma * mean)
