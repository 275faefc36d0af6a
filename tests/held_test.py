"""Predictors that hold what they measured: at every call, at each k-th, in every sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.diffusion.held import Held

PROCESS = Diffusion()
X = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
STEPS = 6


def predict(held, x_t, t, c=None):
  return held[:, None, None, None] * jnp.tanh(x_t)


def measure(x_t, t, c=None):
  return 0.5 + 0.1 * jnp.tanh(x_t.mean((1, 2, 3))) + t / 4000


def draw(eps_fn, sampler):
  return sampling.sample(eps_fn, PROCESS, jax.random.key(1), X, sampler=sampler, steps=STEPS)


partial = jax.tree_util.Partial
HELD = Held(partial(predict), partial(measure), 1)


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_measured_at_every_call_it_is_any_other_predictor(sampler):
  plain = partial(lambda x_t, t, c=None: predict(measure(x_t, t), x_t, t))
  np.testing.assert_allclose(draw(HELD, sampler), draw(plain, sampler), rtol=1e-6)


@pytest.mark.parametrize("every", [2, 4])
def test_what_was_measured_holds_until_the_next_time(every):
  """A walk by hand: DDIM's steps with the weights of each `every`-th."""
  held = Held(partial(predict), partial(measure), every)
  table = sampling._ddim_steps(
    PROCESS, sampling.times(PROCESS, STEPS), STEPS, 0.0, sampling.DEFAULT
  )
  x, w = X, None
  for i, (t, gamma, sigma, x0, _, eps, _) in enumerate(zip(*table, strict=True)):
    at = jnp.full(2, t)
    w = measure(x, at) if i % every == 0 else w
    said = predict(w, x, at)
    seen = jnp.clip((x - sigma * said) / gamma, -1, 1)
    x = x0 * seen + eps * (x - gamma * seen) / sigma
  np.testing.assert_allclose(draw(held, "ddim"), x, rtol=1e-4, atol=1e-5)
  assert not np.allclose(draw(HELD, "ddim"), x, atol=1e-4)


def test_by_itself_it_measures_at_each_call():
  t = jnp.array([3, 900])
  held = Held(partial(predict), partial(measure), 5)
  np.testing.assert_array_equal(held(X, t), predict(measure(X, t), X, t))
  assert functools.reduce(lambda a, b: a and b, map(callable, (held, held.predict)))
