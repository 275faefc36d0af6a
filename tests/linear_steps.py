"""A step of a method on a linear network of conditions, and its losses in float64."""

import functools

import jax
import numpy as np

from jaxunlearn import methods
from jaxunlearn.diffusion import Diffusion
from tests import toys

PROCESS = Diffusion(T=100, beta_T=0.2)
SHAPE = (3, 3, 2)
SIZE = 18
FORGET = 3
ROWS = 12
PARAMS, ORIGIN = toys.linear_params(SHAPE, 4), toys.linear_params(SHAPE, 4, seed=1)
THETA = toys.flat(PARAMS)
KEY = jax.random.key(4)


def rows(seed, c, to=None):
  image = np.random.default_rng(seed).uniform(-1, 1, (ROWS, *SHAPE)).astype(np.float32)
  index = np.arange(ROWS, dtype=np.int32)
  narrow = lambda v: None if v is None else np.broadcast_to(v, ROWS).astype(np.int32)
  return methods.Rows(image, narrow(c), index, narrow(to))


DATA = {"x": rows(1, np.arange(ROWS) % 3), "a": rows(2, FORGET, 0), "alt": rows(3, FORGET)}
RANDOM = DATA | {"a": rows(2, FORGET, np.arange(ROWS) // 2 % 3)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def jitted_step(method, net, batch, params, extras, step, key):
  draws = method.draw(PROCESS, batch, key, extras, step)
  grads, metrics = method.gradients(net, params, PROCESS, draws, extras)
  direction, combined = method.combine(grads, extras)
  return draws, grads, direction, metrics | combined


def one_step(
  name, extras=None, step=0, batch=DATA, net=toys.linear, params=PARAMS, key=KEY, **fields
):
  """The draws of a step, its K gradients and its direction in float64, and its metrics."""
  method = methods.make(name, **fields)
  batch = {stream: batch[stream] for stream in method.streams}
  draws, grads, direction, metrics = jitted_step(
    method, net, batch, params, extras or {}, step, key
  )
  wide = {k: np.asarray(v) if v.dtype.kind in "ib" else np.float64(v) for k, v in draws.items()}
  return wide, [toys.flat(g) for g in grads], toys.flat(direction), metrics


def prepare(name, params=PARAMS, **fields):
  return methods.make(name, **fields).prepare(toys.linear, params, PROCESS, DATA, KEY)


def denoising(draws, *names, theta=THETA, weight=1.0):
  """The denoising loss of four of the draws, and its gradient."""
  x, c, t, eps = (draws[name] for name in names)
  return toys.linear_loss(theta, toys.noised(PROCESS, x, t, eps), c, eps, weight)


KEPT = ("x", "c_x", "t", "eps")
OTHER = ("a", "c_a", "t_a", "eps_a")


def close(got, want, rtol=1e-5):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.max(np.abs(want)))
