"""Toys with closed forms: the exact noise predictor of a Gaussian mixture; a linear network."""

import jax
import jax.numpy as jnp
import numpy as np

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


def linear(params, x_t, t, c):
  """eps_theta = w x_t + e_c, pixel by pixel: a conditional network with a table of embeddings."""
  del t
  return params["w"] * x_t + params["class_embedding_0"]["embedding"][c].reshape(x_t.shape)


def linear_params(shape, values, seed=0):
  """Random parameters of `linear` for images of that shape and so many conditions and a null."""
  rng = np.random.default_rng(seed)
  normal = lambda *size: jnp.asarray(rng.standard_normal(size), jnp.float32)
  table = normal(values + 1, int(np.prod(shape)))
  return {"class_embedding_0": {"embedding": table}, "w": normal(*shape)}


def flat(tree):
  """All entries of a tree, as the functions below take parameters and give gradients: float64."""
  return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def linear_eps(theta, x_t, c):
  """`linear` with flat parameters, in float64."""
  size = x_t[0].size
  table, w = theta[:-size].reshape(-1, *x_t.shape[1:]), theta[-size:].reshape(x_t.shape[1:])
  return w * x_t + table[c]


def linear_loss(theta, x_t, c, target, weight=1.0):
  """mean_b weight_b ||target - eps_theta||^2 and its flat gradient."""
  residual = target - linear_eps(theta, x_t, c)
  weight = np.broadcast_to(weight, len(x_t))
  slope = -2 * weight[:, None, None, None] * residual / len(x_t)
  table = np.zeros((theta.size // x_t[0].size - 1, *x_t.shape[1:]))
  np.add.at(table, c, slope)
  loss = np.mean(weight * np.sum(residual**2, axis=(1, 2, 3)))
  return loss, np.concatenate([table.ravel(), np.sum(slope * x_t, axis=0).ravel()])


def noised(process, x, t, eps):
  """x_t in float64."""
  abar = process.abar[np.asarray(t)][:, None, None, None]
  return np.sqrt(abar) * np.float64(x) + np.sqrt(1 - abar) * np.float64(eps)
