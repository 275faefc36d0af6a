"""Routers against closed forms: k-means is a Gaussian mixture; a head learns the posterior."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.cdm import compose, routers
from jaxunlearn.cdm.compose import Compartments
from jaxunlearn.cdm.routers import kmeans, neural
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.models import uvit

PROCESS = Diffusion()
SIDE = 8
POOLED = kmeans.Router(k=3, pool=4)


def records(pixels):
  pixels = np.asarray(pixels, np.uint8)
  ids = np.array([f"r{i}" for i in range(len(pixels))], str)
  return data.Records(ids, pixels, np.zeros(len(ids), np.int32), ("all",))


@functools.cache
def sources():
  """Three sources of noisy pictures, of 40, 25 and 2 records."""
  rng = np.random.default_rng(0)
  draw = lambda n, level: rng.integers(level, level + 90, (n, SIDE, SIDE, 1))
  return {"a": records(draw(40, 0)), "b": records(draw(25, 80)), "few": records(draw(2, 160))}


def stack(parts):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts.values())


@jax.jit
def kmeans_logits(parts, x_t, t):
  return POOLED.logits(parts, PROCESS, x_t, t)


def points(n=12):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.normal(0, 1, (n, SIDE, SIDE, 1)), jnp.float32)


def log_density(part, x_t, t):
  """log p_t(P x_t) of a part in float64, with P as a matrix and the sum over centroids as it is."""
  blocks = np.kron(np.eye(SIDE // 4), np.ones((4, 1)) / 2)
  matrix = np.kron(blocks, blocks)  # 64 pixels -> 4 features
  np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-15)
  f = np.float64(x_t).reshape(len(x_t), -1) @ matrix
  abar = PROCESS.abar[t]
  log_p = np.full(len(f), -np.inf)
  for center, v, log_share in zip(*(np.float64(part[k]) for k in part), strict=True):
    v = abar * v + 1 - abar
    square = np.sum((f - np.sqrt(abar) * center) ** 2, axis=1)
    log_p = np.logaddexp(log_p, log_share - square / (2 * v) - 2 * np.log(2 * np.pi * v))
  return log_p


@pytest.mark.parametrize("t", [0, 100, 500, 999])
def test_kmeans_is_the_density_of_a_gaussian_mixture(t):
  parts = POOLED.fit(sources())
  assert list(parts["a"]) == ["center", "variance", "log_share"]
  ours = kmeans_logits(stack(parts), points(), jnp.full(12, t))
  exact = np.stack([log_density(part, points(), t) for part in parts.values()], axis=1)
  np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)


def test_a_temperature_divides_the_logits():
  parts, t = stack(POOLED.fit(sources())), jnp.full(12, 300)
  warm = dataclasses.replace(POOLED, temperature=4)
  cold = kmeans_logits(parts, points(), t)
  np.testing.assert_allclose(warm.logits(parts, PROCESS, points(), t), cold / 4, rtol=1e-6)


def test_kmeans_finds_the_modes_of_a_source():
  modes = np.array([20, 120, 230])
  rng = np.random.default_rng(2)
  which = rng.permutation(np.repeat([0, 1, 2], (10, 20, 30)))
  pixels = modes[which][:, None, None, None] + rng.integers(-5, 6, (60, SIDE, SIDE, 1))
  part = POOLED.fit({"a": records(pixels)})["a"]
  order = np.argsort(part["center"][:, 0])
  np.testing.assert_allclose(np.exp(part["log_share"])[order], [1 / 6, 2 / 6, 3 / 6], rtol=1e-5)
  wanted = 4 * (modes / 127.5 - 1)  # 16 pixels, over 4
  np.testing.assert_allclose(part["center"][order], np.tile(wanted[:, None], 4), atol=0.05)
  pooled = np.float64(pixels / 127.5 - 1).reshape(60, 2, 4, 2, 4).sum((2, 4)) / 4
  exact = [pooled[which == i].reshape(-1, 4).var(axis=0).mean() for i in range(3)]
  np.testing.assert_allclose(part["variance"][order], np.maximum(exact, POOLED.floor), rtol=1e-5)


def test_a_part_is_of_its_source_alone():
  all_ = POOLED.fit(sources())
  for name in sources():
    rest = POOLED.fit({key: value for key, value in sources().items() if key != name})
    added = rest | POOLED.fit({name: sources()[name]})
    for key in all_:
      jax.tree.map(np.testing.assert_array_equal, all_[key], added[key])
  assert POOLED.seen(["a", "b"]) == {"centroids of a": "a alone", "centroids of b": "b alone"}
  other = POOLED.fit({"another name": sources()["a"]})["another name"]
  assert not np.array_equal(other["center"], all_["a"]["center"])  # the seed is the name


def test_deleting_a_source_leaves_the_logits_of_the_others():
  parts, t = stack(POOLED.fit(sources())), jnp.arange(12) * 90
  pick = lambda rows: jax.tree.map(lambda a: a[np.array(rows)], parts)
  logits = lambda rows: np.asarray(kmeans_logits(pick(rows), points(), t))
  np.testing.assert_array_equal(logits([0, 2]), logits([0, 1, 2])[:, [0, 2]])
  np.testing.assert_array_equal(logits([1]), logits([0, 1, 2])[:, 1:2])


@pytest.mark.filterwarnings("error")  # SciPy divides by 0 where pictures are too few
def test_a_source_of_few_records_has_few_centroids():
  part = POOLED.fit(sources())["few"]
  np.testing.assert_allclose(np.exp(np.sort(part["log_share"])), [0, 0.5, 0.5])
  np.testing.assert_allclose(part["variance"], [POOLED.floor, POOLED.floor, 1])
  same = records(np.full((9, SIDE, SIDE, 1), 200))
  part = POOLED.fit({"same": same})["same"]
  np.testing.assert_array_equal(np.exp(part["log_share"]), [1, 0, 0])
  np.testing.assert_allclose(part["center"][0], 4 * (200 / 127.5 - 1), rtol=1e-5)


def test_the_gradient_of_the_logits_is_finite():
  parts = stack(POOLED.fit(sources()))
  total = lambda x: kmeans_logits(parts, x, jnp.arange(12) * 90).sum()
  assert np.isfinite(jax.grad(total)(points())).all()


def test_levels_of_noise_between_the_times():
  gamma, sigma = routers.levels(PROCESS, jnp.arange(1000))
  np.testing.assert_allclose(gamma, np.sqrt(PROCESS.abar), rtol=1e-5)
  np.testing.assert_allclose(sigma, np.sqrt(1 - PROCESS.abar), rtol=1e-5)
  t = np.linspace(0, 999, 5000, dtype=np.float32)
  gamma, sigma = (np.float64(level) for level in routers.levels(PROCESS, jnp.asarray(t)))
  assert (np.diff(gamma) < 0).all() and (np.diff(sigma) > 0).all()
  np.testing.assert_allclose(gamma**2 + sigma**2, 1, atol=1e-6)
  wanted = np.interp(t, np.arange(1000), PROCESS.log_noise_to_signal())
  np.testing.assert_allclose(np.log(sigma / gamma), wanted, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Stands in for a U-ViT: the token of the time, and those of 4x4 patches."""

  image_shape: tuple[int, int, int] = (SIDE, SIDE, 1)

  def features(self, params, x, t, c=None):
    patches = x.reshape(len(x), 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(len(x), 4, 16)
    waves = jnp.cos(t[:, None, None] / 1000 * np.pi * jnp.arange(8))
    return jnp.concatenate([waves @ params["time"], patches @ params["patch"]], axis=1)


NET = Tokens()
LEVEL = {"dark": 115, "grey": 125, "bright": 140}  # of every pixel of a source
HEAD = neural.Router(width=32, heads=2, steps=400, batch=64, learning_rate=1e-2)
SHORT = dataclasses.replace(HEAD, steps=3)


@functools.cache
def backbone():
  rng = np.random.default_rng(3)
  draw = lambda *shape: jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)
  return {"time": draw(8, 24), "patch": draw(16, 24)}


def plain():
  flat = lambda n, level: records(np.full((n, SIDE, SIDE, 1), level))
  return {name: flat(10 * (i + 1), level) for i, (name, level) in enumerate(LEVEL.items())}


@functools.cache
def head_parts():
  return HEAD.fit(plain(), NET, backbone(), PROCESS)


def drawn(n=600, low=0, high=1000):
  """(x_t, t, source) of the sources at equal shares."""
  rng = np.random.default_rng(4)
  source = np.arange(n) % 3
  t = jnp.asarray(rng.integers(low, high, n))
  x = data.to_model(np.array([*LEVEL.values()])[source])[:, None, None, None]
  eps = jnp.asarray(rng.normal(0, 1, (n, SIDE, SIDE, 1)), jnp.float32)
  return PROCESS.q_sample(jnp.asarray(x), t, eps), t, source


def posterior(parts, counts):
  model = Compartments(tuple(parts), counts, {}, stack(parts))
  return compose.log_weights(HEAD.on(NET, backbone()), PROCESS, model)


def exact(x_t, t, prior):
  """log p(i | x_t) of the three constant pictures."""
  means = data.to_model(np.array([*LEVEL.values()]))[:, None, None, None]
  gamma, sigma = (np.float64(f(t))[:, None] for f in (PROCESS.gamma, PROCESS.sigma))
  square = np.sum((np.float64(x_t)[:, None] - gamma * means) ** 2, axis=(2, 3, 4))
  return jax.nn.log_softmax(np.log(prior) - square / (2 * sigma[:, :, 0, 0, 0] ** 2), axis=1)


@pytest.mark.parametrize("counts", [(10, 20, 30), (20, 20, 20), (30, 20, 10)])
def test_a_head_learns_the_posterior_for_any_priors(counts):
  x_t, t, source = drawn()
  w = np.asarray(posterior(head_parts(), counts)(x_t, t))
  wanted = np.asarray(exact(x_t, t, np.array(counts) / 60))
  divergence = np.sum(np.exp(wanted) * (wanted - w), axis=1).mean()
  assert 0 <= divergence < 0.03, divergence  # nats
  nll = lambda log_w: -log_w[np.arange(600), source].mean()
  assert abs(nll(w) - nll(wanted)) < 0.05


def test_a_head_tells_separable_sources_apart():
  x_t, t, source = drawn(low=0, high=30)
  w = np.asarray(posterior(head_parts(), (10, 20, 30))(x_t, t))
  assert -w[np.arange(600), source].mean() < 0.05


def test_a_head_masked_to_fewer_sources_is_renormalised():
  x_t, t, _ = drawn(60)
  parts = head_parts()
  all_ = np.asarray(posterior(parts, (10, 20, 30))(x_t, t))[:, [0, 2]]
  two = posterior({name: parts[name] for name in ("dark", "bright")}, (10, 30))
  np.testing.assert_allclose(two(x_t, t), jax.nn.log_softmax(all_, axis=1), atol=1e-5)


def test_rows_of_a_batch_do_not_mix():
  x_t, t, _ = drawn(60)
  weigh = posterior(head_parts(), (10, 20, 30))
  order = np.random.default_rng(5).permutation(60)
  np.testing.assert_allclose(weigh(x_t[order], t[order]), weigh(x_t, t)[order], atol=1e-5)


def test_priors_are_recomputed_exactly():
  x_t, t, _ = drawn(60)
  old, new = (10, 20, 30), (5, 90, 5)
  moved = np.asarray(posterior(head_parts(), old)(x_t, t)) + np.log(np.divide(new, old))
  ours = posterior(head_parts(), new)(x_t, t)
  np.testing.assert_allclose(ours, jax.nn.log_softmax(moved, axis=1), atol=1e-5)


def test_a_fit_follows_from_its_seed():
  fit = lambda router: router.fit(plain(), NET, backbone(), PROCESS)
  first = fit(SHORT)
  jax.tree.map(np.testing.assert_array_equal, first, fit(SHORT))
  other = fit(dataclasses.replace(SHORT, seed=1))
  assert not np.array_equal(first["dark"]["w"], other["dark"]["w"])
  own = {key for key in first["dark"] if not np.array_equal(first["dark"][key], first["grey"][key])}
  assert own == set(neural.OWN)


def test_a_head_that_knows_nothing_returns_the_prior():
  params = HEAD._init(jax.random.key(0), NET, backbone(), 3)
  x_t, t, _ = drawn(6)
  w = posterior(neural._parts(list(LEVEL), params), (10, 20, 30))(x_t, t)
  np.testing.assert_allclose(np.exp(w), np.tile(np.array([1, 2, 3]) / 6, (6, 1)), rtol=1e-6)


def test_a_head_on_a_uvit():
  net = uvit.Net(sample_size=SIDE, in_channels=1, patch_size=4, width=8, depth=2, heads=2)
  rng = np.random.default_rng(6)
  draw = lambda a: jnp.asarray(rng.normal(0, 0.1, a.shape), jnp.float32)
  weights = jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0)))
  router = neural.Router(width=8, heads=2, steps=2, batch=4)
  parts = router.fit(plain(), net, weights, PROCESS)
  x_t, t, _ = drawn(6)
  logits = router.on(net, weights).logits(stack(parts), PROCESS, x_t, t)
  flat = {key: leaf[0] for key, leaf in stack(parts).items() if key.startswith("linear")}
  assert logits.shape == (6, 3) and flat["linear/kernel"].shape == (8, 8)
  later = router.on(net, weights).logits(stack(parts), PROCESS, x_t, t + 0.5)
  assert np.isfinite(later).all() and np.abs(later - logits).max() < 0.1


def test_a_backbone_is_the_leaves_of_the_router_on_it():
  on = HEAD.on(NET, backbone())
  assert len(jax.tree.leaves(on)) == len(jax.tree.leaves(backbone()))
  assert jax.tree.structure(on) == jax.tree.structure(HEAD.on(NET, backbone()))
  assert HEAD.seen(["a", "b"])["head"] == "all sources: a, b"
  assert "no source" in HEAD.seen(["a", "b"])["backbone"]


def test_routers_are_chosen_by_name():
  assert routers.names() == ["decoded", "kmeans", "neural"]
  assert routers.make("kmeans", k=5) == kmeans.Router(k=5)
  assert routers.make("neural", steps=5) == neural.Router(steps=5)
  assert kmeans.Router.independent and not neural.Router.independent
  assert POOLED.on(NET, None) is POOLED


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: routers.make("kmean"), "no router 'kmean' (did you mean 'kmeans'?)"),
    (lambda: routers.make("kmeans", K=3), "router kmeans has no field 'K'"),
    (lambda: kmeans.Router(k=0), "k is 0; use a whole number, 1 or more"),
    (lambda: kmeans.Router(temperature=0), "temperature is 0; use more than 0"),
    (lambda: kmeans.Router(temperature=-1.0), "temperature is -1; use more than 0"),
    (lambda: POOLED.fit({"void": records(np.zeros((0, 8, 8, 1)))}), "source 'void' has no records"),
    (lambda: POOLED.fit({}), "no source to fit a router on"),
    (lambda: POOLED.fit({"odd": records(np.zeros((2, 6, 8, 1)))}), "pool 4 does not divide"),
    (lambda: neural.Router(steps=0), "steps is 0; use a whole number, 1 or more"),
    (lambda: neural.Router(width=30), "width 30 does not divide into heads 4"),
    (lambda: HEAD.on(object(), {}), "only models.uvit has middle features"),
    (lambda: HEAD.on(NET, None), "a neural router without a backbone; set config.init_from"),
    (lambda: HEAD.fit(plain(), NET, None, PROCESS), "a neural router without a backbone"),
    (
      lambda: HEAD.fit({"void": records(np.zeros((0, 8, 8, 1)))}, NET, backbone(), PROCESS),
      "source 'void' has no records",
    ),
    (
      lambda: SHORT.fit(plain(), NET, jax.tree.map(lambda a: a * jnp.nan, backbone()), PROCESS),
      "the cross-entropy of the router is nan after 3 steps; lower its learning_rate 0.01",
    ),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    call()
