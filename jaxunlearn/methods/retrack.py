"""ReTrack: redirect the denoising of a to its retained neighbours (arXiv 2509.13007).

    v_k = (a_t - gamma_t y_k) / sigma_t      y_1 .. y_K in X\\A, the K nearest to a by pixel L2
    p = softmax_k(-||v_k||^2 / 2)            the posterior of y_k given a_t
    L_U = E_{a, t, eps} sum_k p_k ||v_k - eps_theta(a_t, t)||^2
    L = l L_U + (1 - l) L_{X\\A}

The neighbours are found once, for each distinct image of A. The softmax takes
log q(a_t | y_k) - log q(a_t | a), which differs from -||v_k||^2 / 2 by what all k share, since a
difference of two sums over pixels would cancel. A pair of rows x and a shares t and eps.

Deviations: none in the loss. The paper searches neighbours of Stable Diffusion among latents; here
they are found among the images that the model is trained on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  neighbours: ranges.Count = 10  # K
  weight: ranges.Share = 0.005  # l: .005 for MNIST and CelebA-HQ, .02 for CIFAR-10

  streams = ("x", "a")
  terms = ("x", "u")
  numbered = True
  forwards = 2
  backwards = 2
  shared_forward = False

  def prepare(self, apply, params, process, data, rng):
    """A table from record number to distinct image, and each distinct image's neighbours.

    Raises:
      ValueError: fewer retained images than neighbours.
    """
    forgotten = list(data["a"].chunks())
    index = np.concatenate([rows.index for rows in forgotten])
    images = np.concatenate([rows.image for rows in forgotten])
    distinct, image = np.unique(images, axis=0, return_inverse=True)
    order = np.argsort(index)
    neighbours, found = nearest(
      distinct, (rows.image for rows in data["x"].chunks()), self.neighbours
    )
    methods.check(
      "neighbours", self.neighbours, self.neighbours <= found, f"at most {found}, all retained"
    )
    return {
      "record": jnp.asarray(index[order], jnp.int32),
      "image": jnp.asarray(image.reshape(-1)[order], jnp.int32),
      "neighbours": jnp.asarray(neighbours),
    }

  def draw(self, process, batch, rng, extras, step):
    image = extras["image"][jnp.searchsorted(extras["record"], batch["a"].index)]
    return methods.draw_pairs(process, batch, rng) | {"image": image}

  def losses(self, eps_fn, process, draws, extras):
    a, t, eps = draws["a"], draws["t"], draws["eps"]
    loss_x = methods.denoising_loss(eps_fn, process, draws["x"], draws["c_x"], t, eps)
    a_t = process.q_sample(a, t, eps)
    eps_hat = eps_fn(a_t, t, draws["c_a"])
    y = jnp.moveaxis(extras["neighbours"][draws["image"]], 1, 0)  # [K, B, H, W, C]
    p = jax.nn.softmax(jax.vmap(lambda y_k: process.log_q_ratio(a_t, y_k, a, t))(y), axis=0)
    error = jax.vmap(lambda y_k: methods.squared_error(process.eps(a_t, y_k, t), eps_hat))(y)
    return (loss_x, jnp.mean(jnp.sum(p * error, axis=0))), {}

  def combine(self, grads, extras):
    mix = lambda g_x, g_u: (1 - self.weight) * g_x + self.weight * g_u
    return jax.tree.map(mix, *grads), {}


def nearest(a, chunks, k):
  """[A, k, H, W, C]: for each image of a, the k nearest by L2 of all chunks, in no order; how many
  images those hold."""
  rows = a.reshape(len(a), -1)
  distance = np.full((len(a), k), np.inf, np.float32)
  images = np.zeros((len(a), k, *a.shape[1:]), np.float32)
  found = 0
  for x in chunks:
    flat = x.reshape(len(x), -1)
    found += len(x)
    # ||a - x||^2 / 2 less ||a||^2 / 2, which all x share.
    both = np.concatenate([distance, np.sum(flat**2, axis=1) / 2 - rows @ flat.T], axis=1)
    best = np.argpartition(both, k - 1, axis=1)[:, :k]
    distance = np.take_along_axis(both, best, axis=1)
    for row, places in enumerate(best):
      old = images[row]
      images[row] = np.stack([old[i] if i < k else x[i - k] for i in places])
  return images, found
