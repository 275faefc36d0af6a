"""Guidance against closed forms, the tables of embeddings, and what a stream maps to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxunlearn import data, methods, streams
from jaxunlearn.diffusion import NULL, Diffusion, guidance, sampling
from jaxunlearn.methods import embeddings
from tests import toys

PROCESS = Diffusion()
RNG = np.random.default_rng(0)
SHAPE = (2, 2, 1)
MEANS = RNG.normal(size=(3, *SHAPE))
STD, WEIGHTS = 0.4, np.array([0.5, 0.3, 0.2])


def mixture(means, x_t, t, c):
  """Exact: of mode c, or of the whole mixture where c is null."""
  exact = lambda i: toys.mixture_eps_fn(PROCESS, means[i], STD, WEIGHTS[i] / WEIGHTS[i].sum())
  modes = [np.array([0]), np.array([1]), np.array([2]), np.arange(3)]
  every = [exact(i)(x_t, t) for i in modes]
  return jnp.stack(every)[jnp.where(c == NULL, len(means), c), jnp.arange(len(x_t))]


class Counted:
  """A noise predictor that notes the shape of each of its calls."""

  def __init__(self):
    self.calls = []

  def __call__(self, x_t, t, c=None):
    self.calls.append((x_t.shape, t.shape, None if c is None else c.shape))
    mean = 0.0 if c is None else c.reshape(len(x_t), -1).sum(1)[:, None, None, None]
    return x_t * t[:, None, None, None] + mean


def rows(b=4):
  x_t = RNG.normal(size=(b, *SHAPE)).astype(np.float32)
  return jnp.asarray(x_t), jnp.arange(b) * 200


# Guidance.


@pytest.mark.parametrize("c", [[0, 1, 2, NULL], [[0, 1], [1, NULL], [2, 0], [NULL, NULL]]])
def test_guidance_is_its_formula_in_one_pass_of_twice_the_rows(c):
  eps_fn, c, (x_t, t) = Counted(), jnp.array(c), rows()
  got = guidance.guided(eps_fn, 2.5)(x_t, t, c)
  assert eps_fn.calls == [((8, *SHAPE), (8,), (8, *c.shape[1:]))]
  want = 3.5 * eps_fn(x_t, t, c) - 2.5 * eps_fn(x_t, t, jnp.full_like(c, NULL))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_no_condition_is_not_guided():
  eps_fn, (x_t, t) = Counted(), rows()
  np.testing.assert_array_equal(guidance.guided(eps_fn, 2.0)(x_t, t), eps_fn(x_t, t))
  assert eps_fn.calls == [((4, *SHAPE), (4,), None)] * 2
  null = jnp.full(4, NULL)
  got = guidance.guided(eps_fn, 2.0)(x_t, t, null)
  np.testing.assert_allclose(got, eps_fn(x_t, t, null), rtol=1e-5)


def test_no_guidance_is_the_model_itself_and_unguided_undoes_it():
  eps_fn = Partial(mixture, MEANS)
  assert guidance.guided(eps_fn, 0.0) is eps_fn
  assert guidance.unguided(eps_fn) is eps_fn
  assert guidance.unguided(guidance.guided(eps_fn, 2.0)) is eps_fn
  passed = jax.jit(lambda f, x_t, t: guidance.unguided(f)(x_t, t, t // 400))
  x_t, t = rows()
  got = passed(guidance.guided(eps_fn, 2.0), x_t, t)
  np.testing.assert_allclose(got, eps_fn(x_t, t, t // 400), rtol=1e-5)


@pytest.mark.parametrize("w", [0.5, 2.0])
def test_guidance_adds_the_gradient_of_an_implicit_classifier(w):
  """eps = -sigma [grad log p(x_t) + (1 + w) grad log p(c | x_t)], float64, of a mixture."""
  (x_t, _), c = rows(3), np.array([0, 1, 2])
  t = np.array([30, 300, 700])
  got = guidance.guided(Partial(mixture, MEANS), w)(x_t, jnp.asarray(t), jnp.asarray(c))
  for i in range(3):
    x, gamma, sigma = (
      np.asarray(x_t[i], np.float64).ravel(),
      PROCESS.abar[t[i]] ** 0.5,
      (1 - PROCESS.abar[t[i]]) ** 0.5,
    )
    v, mu = (gamma * STD) ** 2 + sigma**2, gamma * MEANS.reshape(3, -1)
    log_joint = np.log(WEIGHTS) - ((x - mu) ** 2).sum(1) / (2 * v)
    share = np.exp(log_joint - np.logaddexp.reduce(log_joint))
    mean = share @ mu
    score = (mean - x) / v + (1 + w) * (mu[c[i]] - mean) / v
    np.testing.assert_allclose(got[i].ravel(), -sigma * score, rtol=2e-4, atol=2e-5)


def test_guided_samples_of_gaussians_have_the_closed_form_mean():
  """p(x_t|c)^(1+w) / p(x_t)^w of N(m_c, s^2) and N(m, s^2) is a Gaussian of mean (1+w) m_c - w m.

  All have one variance, so that the guided noise is exact for N((1+w) m_c - w m, s^2), and DDIM
  takes each x_T where it takes it for that one.
  """
  w, means = 1.5, MEANS * 0.1
  shift = lambda m: toys.mixture_eps_fn(PROCESS, m[None], STD, np.ones(1))

  def eps_fn(x_t, t, c):
    each = jnp.stack([shift(m)(x_t, t) for m in means])
    return each[jnp.where(c == NULL, 2, c), jnp.arange(len(x_t))]

  x_T, c = jnp.asarray(RNG.normal(size=(2, *SHAPE)), jnp.float32), jnp.array([0, 1])
  options = sampling.Options(clip_sample=False)
  sample = lambda f, x, c: sampling.ddim(
    f, PROCESS, jax.random.key(0), x, c, steps=20, options=options
  )
  got = sample(guidance.guided(Partial(eps_fn), w), x_T, c)
  for i in range(2):
    want = sample(shift((1 + w) * means[i] - w * means[2]), x_T[i : i + 1], None)
    np.testing.assert_allclose(got[i], want[0], rtol=1e-4, atol=1e-4)


# Tables.


def test_a_table_is_read_and_replaced():
  params = {"class_embedding_1": {"embedding": np.ones((3, 2)), "linear_1": 5}, "other": 7}
  np.testing.assert_array_equal(embeddings.table(params, 1), np.ones((3, 2)))
  moved = embeddings.with_table(params, 1, np.zeros((3, 2)))
  np.testing.assert_array_equal(embeddings.table(moved, 1), np.zeros((3, 2)))
  assert moved["class_embedding_1"]["linear_1"] == 5 and moved["other"] == 7
  np.testing.assert_array_equal(embeddings.table(params, 1), np.ones((3, 2)))
  with pytest.raises(ValueError, match="the model has no class_embedding_0; use a conditional"):
    embeddings.table(params, 0)


# What the stream to forget maps to.


def stream(take, styled=False):
  n = 12
  image, label = np.zeros((n, 2, 2, 1), np.uint8), np.arange(n, dtype=np.int32) % 3
  style = ((label + np.arange(n) // 3) % 2).astype(np.int32)
  ids = np.arange(n).astype(str)
  styles = (style, ("photo", "ink")) if styled else ()
  records = data.Records(ids, image, label, ("a", "b", "c"), *styles)
  concept = data.Concept(1, 0) if styled else data.Concept(0, 1)
  forget = concept.matches(records.conditions)
  return streams.make(records, forget, {"a": take}, 4, 0, concept, conditional=True)["a"]


@pytest.mark.parametrize(
  ("to", "styled", "want"),
  [("next", False, (0, 1, 2)), ("null", False, (0, 1, NULL)), ("next", True, (1, 0, 1))],
)
def test_the_concept_of_a_stream(to, styled, want):
  assert embeddings.concept_of(stream({"take": "forget", "to": to}, styled)) == want


@pytest.mark.parametrize(
  ("take", "styled", "says"),
  [
    ("forget", False, "maps no condition"),
    ({"take": "forget", "to": "random"}, False, "maps its conditions in 2 ways"),
    ({"take": "all", "to": "next"}, False, "maps its conditions in 3 ways"),
    ({"take": "forget", "to": "null"}, True, "maps its conditions in 3 ways"),
  ],
)
def test_streams_that_have_no_one_concept(take, styled, says):
  with pytest.raises(ValueError, match=f"`a` {says}; set config.streams.a to forget with to=next"):
    embeddings.concept_of(stream(take, styled))


def test_rows_without_conditions_have_no_concept():
  image = np.zeros((2, 2, 2, 1), np.float32)
  with pytest.raises(ValueError, match="maps no condition"):
    embeddings.concept_of(methods.Rows(image, None, np.arange(2)))
