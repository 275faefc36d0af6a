"""Compositions of exact scores are exact: Gaussian mixtures, source by source."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.cdm import compose
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.diffusion import NULL, Diffusion, sampling
from jaxunlearn.mesh import sharding
from tests import toys

PROCESS = Diffusion()
SHAPE = (2, 2, 1)
COUNTS = (10, 30, 20, 40)
STD = 0.3


class Exact:
  """A router that knows the densities: each source is two modes of equal share."""

  def logits(self, parts, process, x_t, t):
    gamma, sigma = (f(t) for f in (process.gamma, process.sigma))
    means = parts["means"]  # [n, K, H, W, C]
    v = ((gamma * STD) ** 2 + sigma**2)[:, 0, 0, 0]
    apart = x_t[:, None, None] - gamma[:, None, None] * means
    distance = jnp.sum(apart**2, axis=(-3, -2, -1))
    return jax.nn.logsumexp(-distance / (2 * v[:, None, None]), axis=2)


ROUTER = Exact()


def one(params, x_t, t, c=None):
  eps_fn = toys.mixture_eps_fn(PROCESS, params["means"], STD, jnp.full(2, 0.5))
  shift = 0.0 if c is None else params["shift"][c][:, None, None, None]
  return eps_fn(x_t, t) + shift


@functools.cache
def compartments(counts=COUNTS):
  rng = np.random.default_rng(0)
  n = len(counts)
  means = jnp.asarray(rng.normal(0, 0.7, (n, 2, *SHAPE)), jnp.float32)
  shift = jnp.asarray(rng.normal(0, 1, (n, 3)), jnp.float32)
  params = {"means": means, "shift": shift}
  return Compartments(tuple("abcdefgh"[:n]), counts, params, {"means": means})


def counting():
  """The rows of each call, and a network of one source that notes them."""
  counted = []

  def count(params, x_t, t, c=None):
    jax.debug.callback(lambda rows: counted.append(int(rows)), x_t.shape[0])
    return one(params, x_t, t, c)

  return counted, count


def points(n=24):
  rng = np.random.default_rng(1)
  t = jnp.asarray(rng.integers(0, 1000, n), jnp.int32)
  return jnp.asarray(rng.normal(0, 1, (n, *SHAPE)), jnp.float32), t


def whole(parts, x_t, t):
  """The exact eps of the mixture of all sources, as one mixture of their modes."""
  n = len(parts.names)
  means = parts.params["means"].reshape(2 * n, *SHAPE)
  weights = np.repeat(parts.prior / 2, 2)
  return toys.mixture_eps_fn(PROCESS, means, STD, weights)(x_t, t)


def composed(parts, **mode):
  return compose.compose(one, parts, ROUTER, PROCESS, Mode(**mode))


@pytest.mark.parametrize("how", [{}, {"over": "scan"}, {"rows": 7}, {"over": "scan", "rows": 7}])
def test_score_and_x0_of_the_mixture(how):
  x_t, t = points()
  eps = composed(compartments(), **how)(x_t, t)
  exact = whole(compartments(), x_t, t)
  np.testing.assert_allclose(eps, exact, atol=1e-5)
  low = jnp.minimum(t, 600)  # later x0 = (x_t - sigma eps) / gamma is eps times a thousand
  x0 = lambda eps_fn: PROCESS.x0(x_t, low, eps_fn(x_t, low))
  ours = x0(composed(compartments(), **how))
  np.testing.assert_allclose(ours, x0(lambda x, t: whole(compartments(), x, t)), atol=1e-5)


def test_rows_in_blocks_keep_their_conditions():
  x_t, t = points(10)
  c = jnp.arange(10) % 3
  by = lambda rows: composed(compartments(), rows=rows)(x_t, t, c)
  np.testing.assert_allclose(by(4), by(0), atol=1e-6)


@pytest.mark.parametrize("names", [("b",), ("a", "d"), ("a", "b", "d")])
def test_a_subset_is_the_mixture_of_the_subset(names):
  x_t, t = points()
  parts = compartments().only(names)
  np.testing.assert_allclose(composed(parts)(x_t, t), whole(parts, x_t, t), atol=1e-5)
  assert parts.prior.sum() == pytest.approx(1)


def test_leaving_one_out_is_the_mixture_of_the_rest():
  x_t, t = points()
  rest = compartments().without(["c"])
  assert rest.names == ("a", "b", "d") and rest.counts == (10, 30, 40)
  np.testing.assert_allclose(composed(rest)(x_t, t), whole(rest, x_t, t), atol=1e-5)
  assert np.abs(composed(rest)(x_t, t) - composed(compartments())(x_t, t)).max() > 0.01


@pytest.mark.parametrize("mode", [{"name": name, "k": 2} for name in compose.MODES])
def test_identical_sources_are_one_model(mode):
  x_t, t = points()
  same = jax.tree.map(lambda a: jnp.stack([a[0]] * 4), compartments().params)
  parts = Compartments(tuple("abcd"), COUNTS, same, {"means": same["means"]})
  first = jax.tree.map(lambda a: a[0], same)
  np.testing.assert_allclose(composed(parts, **mode)(x_t, t), one(first, x_t, t), atol=1e-5)


@pytest.mark.parametrize("mode", [{"name": name} for name in compose.MODES] + [{"over": "scan"}])
def test_one_source_alone_is_itself_bitwise(mode):
  x_t, t = points()
  alone = compartments().only(["c"])
  own = jax.tree.map(lambda a: a[2], compartments().params)
  ours = jax.jit(lambda f: f(x_t, t))(composed(alone, **mode))
  theirs = jax.jit(lambda f: f(x_t, t))(composed(alone, name="naive"))
  np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_allclose(ours, one(own, x_t, t), atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_topk_is_the_renormalised_sum_of_the_likeliest(k, block):
  x_t, t = points()
  parts = compartments()
  w = np.exp(np.float64(compose.log_weights(ROUTER, PROCESS, parts)(x_t, t)))
  rank = np.argsort(np.argsort(-w, axis=1), axis=1)
  w = np.where(rank < k, w, 0)
  eps = np.float64(compose.eps_all(one, parts)(x_t, t))
  wanted = np.einsum("bn,nbhwc->bhwc", w / w.sum(1, keepdims=True), eps)
  ours = jax.jit(lambda f: f(x_t, t))(composed(parts, name="topk", k=k, block=block))
  np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_each_row_is_sent_to_the_sources_it_needs():
  counted, count = counting()
  x_t, t = points(64)
  index = jnp.tile(jnp.arange(4), 16)[:, None]
  params = compartments().params
  rows = lambda block: compose.dispatch(
    count, params, x_t, t, None, index, jnp.ones((64, 1)), block
  ).block_until_ready()
  for block, expected in ((16, 64), (8, 64), (12, 96)):
    counted.clear()
    rows(block)
    jax.effects_barrier()
    assert sum(counted) == expected


def test_one_source_a_trajectory_by_the_priors():
  x_t, t = points(100)
  mode = Mode(name="trajectory", seed=3)
  log_prior = compose.log_priors(compartments())
  index, weights = compose.choose(mode, None, log_prior, x_t, t)
  again, _ = compose.choose(mode, None, log_prior, x_t + 1, t // 2)
  np.testing.assert_array_equal(index, again)  # whatever the time and the point
  np.testing.assert_array_equal(np.bincount(index[:, 0]), COUNTS)
  np.testing.assert_array_equal(weights, 1)


def test_one_source_a_step_by_the_priors():
  x_t, t = jnp.zeros((4000, *SHAPE)), jnp.arange(4000) % 1000
  log_prior = compose.log_priors(compartments())
  index, _ = compose.choose(Mode(name="step"), None, log_prior, x_t, t)
  share = np.bincount(index[:, 0]) / 4000
  np.testing.assert_allclose(share, np.array(COUNTS) / 100, atol=0.03)
  later, _ = compose.choose(Mode(name="step"), None, log_prior, x_t, t + 1)
  assert (np.asarray(index) != np.asarray(later)).mean() > 0.4


TOLD = np.array([[4, 6, 0, 0], [30, 0, 0, 0], [0, 20, 0, 0], [6, 24, 10, 0]], np.int32)  # [n, c]


@pytest.mark.parametrize("name", ["soft", "topk"])
def test_under_a_condition_the_mixture_is_of_the_sources_that_have_it(name):
  """p(x | c) = sum_i p(i | c) p_i(x), row by row; of no condition, or of one unseen, the priors."""
  x_t, t = points(50)
  told = compartments()._replace(told=TOLD)
  c = jnp.tile(jnp.array([0, 1, 2, 3, NULL]), 10)
  still = told._replace(params={**told.params, "shift": jnp.zeros((4, 5))})
  ours = jax.jit(lambda f: f(x_t, t, c))(composed(still, name=name, k=4))
  for value in range(-1, 4):
    counts = TOLD[:, value] if value in (0, 1, 2) else np.array(COUNTS)
    there = tuple(np.array(told.names)[counts > 0])
    alone = compartments()._replace(counts=tuple(counts.tolist())).only(there)
    rows = np.flatnonzero(c == value)
    exact = whole(alone, x_t[rows], t[rows])
    np.testing.assert_allclose(ours[rows], exact, atol=1e-5)
  np.testing.assert_allclose(composed(still)(x_t, t), whole(still, x_t, t), atol=1e-5)


def test_of_all_sources_only_those_that_have_the_condition_are_evaluated():
  counted, count = counting()
  x_t, t = points(32)
  told, c = compartments()._replace(told=TOLD), jnp.tile(jnp.array([0, 1, 2, 2]), 8)
  mode = Mode("topk", k=4, block=8)
  compose.compose(count, told, ROUTER, PROCESS, mode)(x_t, t, c).block_until_ready()
  jax.effects_barrier()
  assert sum(counted) == 8 * 3 + 8 * 3 + 16 * 1  # TOLD: three have 0, three have 1, one has 2


@pytest.mark.parametrize("mode", ["trajectory", "step"])
def test_under_a_condition_one_source_at_random_is_one_that_has_it(mode):
  t = jnp.arange(4000) % 1000
  prior = compose.log_priors(compartments()._replace(told=TOLD))
  x_t, c = jnp.zeros((4000, *SHAPE)), jnp.full(4000, 1)
  index, _ = compose.choose(Mode(name=mode), None, prior, x_t, t, c)
  share = np.bincount(index[:, 0], minlength=4) / 4000
  np.testing.assert_allclose(share, TOLD[:, 1] / 50, atol=0.03)
  assert share[1] == 0


def test_conditions_of_two_parts_and_of_a_subset_of_the_sources():
  parts = compartments()._replace(told=TOLD.reshape(4, 2, 2)).only(["a", "c"])
  c = jnp.array([[0, 0], [0, 1], [1, 0], [0, NULL]])
  found = jnp.exp(compose.log_priors(parts)(points(4)[0], c))
  np.testing.assert_allclose(
    found, [[1, 0], [6 / 26, 20 / 26], [1 / 3, 2 / 3], [1 / 3, 2 / 3]], rtol=1e-6
  )


def test_the_average_of_the_sources():
  x_t, t = points()
  eps = compose.eps_all(one, compartments())(x_t, t)
  np.testing.assert_allclose(composed(compartments(), name="naive")(x_t, t), eps.mean(0), atol=1e-6)


@pytest.mark.parametrize("name", compose.MODES)
def test_guidance_is_within_each_source(name):
  x_t, t = points()
  c = jnp.asarray(np.random.default_rng(2).integers(0, 2, len(t)), jnp.int32)
  parts, mode = compartments(), Mode(name=name, k=2)
  shift = lambda c: parts._replace(params=dict(parts.params, shift=c))
  ours = compose.compose(one, parts, ROUTER, PROCESS, mode, guidance=1.5)(x_t, t, c)
  table = parts.params["shift"]
  moved = 2.5 * table - 1.5 * table[:, -1:]
  theirs = compose.compose(one, shift(moved), ROUTER, PROCESS, mode)(x_t, t, c)
  np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_samples_of_the_composition_are_those_of_the_mixture():
  parts = compartments()
  x_T = jax.random.normal(jax.random.key(0), (16, *SHAPE))
  exact = jax.tree_util.Partial(lambda x, t, c=None: whole(parts, x, t))
  draw = lambda f: sampling.sample(f, PROCESS, jax.random.key(1), x_T, sampler="ddim", steps=10)
  np.testing.assert_allclose(draw(composed(parts)), draw(exact), atol=1e-4)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize(
  "mode",
  [{"over": "vmap"}, {"over": "scan"}, {"name": "topk", "k": 2}, {"name": "step"}],
  ids=lambda mode: "-".join(map(str, mode.values())),
)
def test_on_a_mesh_the_sources_are_combined_by_one_sum(groups, mode):
  mesh, parts = sharding.make_mesh(data=8), compartments()
  spread = parts._replace(params=sharding.put_sources(mesh, parts.params, groups))
  x_t, t = (sharding.put(np.asarray(a), sharding.replicated(mesh)) for a in points())
  mixed = composed(spread, **mode)
  program = jax.jit(lambda f, x, t: f(x, t)).lower(mixed, x_t, t).compile()
  text = program.as_text()
  # Of pictures; what else is sent are numbers for each row, the weights' own sums and the like.
  sums = re.findall(r"= f32\[([\d,]+)\]\S* all-reduce(?:-start)?\(", text)
  rows = len(x_t) // (8 // groups)  # the devices of a group have as many rows each
  assert [shape for shape in sums if "," in shape] == [f"{rows},2,2,1"], sums
  other = re.findall(r"= (.*) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
  assert not re.findall(r"\d,\d+,", " ".join(other)), other
  alone = jax.jit(lambda f, x, t: f(x, t))(composed(parts, **mode), *points())
  np.testing.assert_allclose(program(mixed, x_t, t), alone, atol=1e-6)


@pytest.mark.parametrize(("names", "groups"), [("abcd", 4), ("abc", 1), ("bd", 2)])
def test_some_of_the_sources_lie_over_the_mesh_as_well(names, groups):
  whole = compartments()
  spread = whole._replace(params=sharding.put_sources(sharding.make_mesh(), whole.params))
  some = spread.only(names)
  leaf = some.params["shift"]
  assert tuple(leaf.sharding.spec) == ("source",) and leaf.sharding.mesh.shape["source"] == groups
  assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {len(names) // groups}
  call = jax.jit(lambda f: f(*points()))
  np.testing.assert_allclose(call(composed(some)), call(composed(whole.only(names))), atol=1e-6)


def test_one_compilation_serves_every_set_of_parameters():
  x_t, t = points()
  traced = []

  @jax.jit
  def call(eps_fn):
    traced.append(1)
    return eps_fn(x_t, t)

  for name in compose.MODES:
    for scale in (1.0, 2.0):
      parts = jax.tree.map(lambda a, s=scale: a * s, compartments().params)
      call(composed(compartments()._replace(params=parts), name=name))
  assert len(traced) == len(compose.MODES)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "sofy"}, "no mode of composition 'sofy' (did you mean 'soft'?)"),
    ({"rows": -1}, "rows -1 of a composition; use 0, for all at once, or more"),
    ({"k": 0}, "k 0 and block 8 of a composition; use at least 1 each"),
    ({"over": "map"}, "no evaluation over sources 'map'"),
  ],
)
def test_bad_modes(fields, message):
  with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("?)", r"\?\)")):
    Mode(**fields)


def test_bad_subsets():
  with pytest.raises(ValueError, match="no source 'z'; there are: a, b, c, d"):
    compartments().only(["z"])
  with pytest.raises(ValueError, match="a composition needs a source"):
    compartments().without(["a", "b", "c", "d"])
