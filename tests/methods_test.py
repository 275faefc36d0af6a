"""The contract that every module in methods/ keeps: a new method is tested because it exists."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import methods
from jaxunlearn.diffusion import Diffusion
from tests import counting

PROCESS = Diffusion(T=100, beta_T=0.2)
SHAPE = (4, 4, 3)
ROWS = 16

every_method = pytest.mark.parametrize("name", methods.names())


def apply(params, x_t, t, c=None):
  del c
  return jnp.tanh(x_t @ params["w"] + params["b"] * t[:, None, None, None] / PROCESS.T)


def apply_bf16(params, x_t, t, c=None):
  return apply(params, x_t, t, c).astype(jnp.bfloat16)


def random_params():
  k_w, k_b = jax.random.split(jax.random.key(0))
  return {"w": 0.3 * jax.random.normal(k_w, (3, 3)), "b": jax.random.normal(k_b, (3,))}


def rows(seed, n, first=0, conditional=False):
  image = np.random.default_rng(seed).uniform(-1, 1, (n, *SHAPE)).astype(np.float32)
  c = np.arange(n, dtype=np.int32) if conditional else None
  return methods.Rows(image, c, first + np.arange(n, dtype=np.int32))


def take(stream, index):
  return jax.tree.map(lambda v: v[index], stream)


@functools.cache
def setup(name, conditional=False):
  """A method with its defaults, its extras, and a batch of 16 from 24 kept and 5 to unlearn."""
  method = methods.make(name)
  data = {"x": rows(1, 24, conditional=conditional), "a": rows(2, 5, 24, conditional)}
  data = {stream: data[stream] for stream in method.streams}
  extras = method.prepare(apply, random_params(), PROCESS, data, jax.random.key(5))
  batch = {k: take(v, np.arange(ROWS) % len(v.index)) for k, v in data.items()}
  return method, extras, batch


@functools.cache
def drawn(name, conditional=False):
  method, extras, batch = setup(name, conditional)
  return draw(method, batch, jax.random.key(3), extras)


@functools.partial(jax.jit, static_argnums=0)
def draw(method, batch, rng, extras):
  return method.draw(PROCESS, batch, rng, extras)


@functools.partial(jax.jit, static_argnums=(0, 1))
def term_grads(method, apply, params, draws, extras):
  return methods.term_grads(method, apply, params, PROCESS, draws, extras)


def grads_of(name, draws=None, apply=apply):
  method, extras, _ = setup(name)
  draws = drawn(name) if draws is None else draws
  return term_grads(method, apply, random_params(), draws, extras)


def assert_trees_close(got, want, rtol=1e-5):
  """Leaf by leaf, relative to the leaf's largest entry."""
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * np.max(np.abs(w)))


def assert_trees_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def make_run(name):
  """(run, update): three steps of Adam from the toy parameters, and the jitted step."""
  method, extras, batch = setup(name)
  tx = optax.adam(1e-2)

  @jax.jit
  def update(params, opt, batch, extras, step):
    draws = method.draw(PROCESS, batch, jax.random.fold_in(jax.random.key(2), step), extras)
    grads, metrics = methods.term_grads(method, apply, params, PROCESS, draws, extras)
    direction, combined = method.combine(grads, extras)
    updates, opt = tx.update(direction, opt, params)
    return optax.apply_updates(params, updates), opt, metrics | combined

  def run():
    params = random_params()
    opt, metrics = tx.init(params), {}
    for step in range(3):
      params, opt, metrics = update(params, opt, batch, extras, jnp.int32(step))
    return params, metrics

  return run, update


@every_method
def test_a_run_is_finite_moves_every_parameter_compiles_once_and_repeats(name):
  run, update = make_run(name)
  params, metrics = run()
  start = random_params()
  for leaf in jax.tree.leaves((params, metrics)):
    assert np.all(np.isfinite(leaf))
  assert all(not np.allclose(params[k], start[k]) for k in start)
  assert all(np.shape(v) == () for v in metrics.values())
  assert_trees_equal(run(), (params, metrics))
  assert update._cache_size() == 1


@every_method
def test_term_grads_are_the_gradients_of_each_term(name):
  method, extras, _ = setup(name)

  @jax.jit
  def apart(params, draws):
    losses = lambda p: method.losses(functools.partial(apply, p), PROCESS, draws, extras)[0]
    one = lambda k: jax.value_and_grad(lambda p: losses(p)[k])(params)
    return [one(k) for k in range(len(method.terms))]

  grads, metrics = grads_of(name)
  want = apart(random_params(), drawn(name))
  for term, got, (loss, grad) in zip(method.terms, grads, want, strict=True):
    assert_trees_close(got, grad)
    np.testing.assert_allclose(metrics[f"loss_{term}"], loss, rtol=1e-6)


@every_method
@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_average_to_the_gradients_of_the_whole(name, count):
  split = jax.tree.map(lambda v: v.reshape(count, -1, *v.shape[1:]), drawn(name))
  parts = [grads_of(name, jax.tree.map(lambda v, i=i: v[i], split))[0] for i in range(count)]
  mean = jax.tree.map(lambda *g: sum(g) / count, *parts)
  assert_trees_close(mean, grads_of(name)[0])


@every_method
def test_draws_repeat_with_the_key_and_lead_with_the_batch_axis(name):
  method, extras, batch = setup(name)
  first, again, other = (draw(method, batch, jax.random.key(k), extras) for k in (3, 3, 4))
  assert_trees_equal(first, again)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(first)} == {ROWS}
  differ = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, other)
  assert differ["t"] and differ["eps"]


@every_method
def test_declared_passes_are_those_that_run(name):
  method, extras, _ = setup(name)
  model = counting.Model(apply)
  grads, _ = term_grads(method, model, random_params(), drawn(name), extras)
  assert model.rows() == (method.forwards * ROWS, method.backwards * ROWS)
  assert_trees_close(grads, grads_of(name)[0])


@every_method
def test_passes_are_reported_in_forward_passes(name):
  method, _, _ = setup(name)
  _, metrics = grads_of(name)
  assert metrics["passes"] == method.forwards + 2 * method.backwards


@every_method
def test_losses_stay_float32_under_a_bf16_network(name):
  grads, metrics = grads_of(name, apply=apply_bf16)
  exact, exact_metrics = grads_of(name)
  for key in metrics:
    assert metrics[key].dtype == jnp.float32
    # Rounding the network's output to 8 bits moves a loss by no more than that.
    np.testing.assert_allclose(metrics[key], exact_metrics[key], rtol=2e-2)
  for got, want in zip(grads, exact, strict=True):
    assert_trees_close(got, want, rtol=5e-2)


@every_method
def test_each_row_of_a_conditional_model_gets_its_own_condition(name):
  """The condition of each image that a network sees is its record's."""
  method, extras, _ = setup(name, conditional=True)

  @jax.jit
  def conditions(draws):
    seen = []
    eps_fn = lambda x_t, t, c: [x_t, seen.append(c)][0]
    method.losses(eps_fn, PROCESS, draws, extras)
    return seen

  draws = drawn(name, conditional=True)
  lookup = {}
  for stream in ("x", "a"):
    source = rows(1, 24, conditional=True) if stream == "x" else rows(2, 5, 24, True)
    lookup |= {image.tobytes(): int(c) for image, c in zip(source.image, source.c, strict=True)}
  images = [draws[s] for s in method.streams]
  if "from_a" in draws:
    images = [jnp.where(draws["from_a"][:, None, None, None], draws["a"], draws["x"])]
  want = [[lookup[np.asarray(i).tobytes()] for i in stream] for stream in images]
  np.testing.assert_array_equal(conditions(draws), want)


@every_method
def test_a_method_is_frozen_hashable_and_its_fields_have_defaults(name):
  method = methods.make(name)
  assert hash(method) == hash(methods.make(name)) and method == methods.make(name)
  for field in dataclasses.fields(method):
    assert field.default is not dataclasses.MISSING
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(method, field.name, field.default)


@every_method
def test_a_senseless_number_is_refused_in_one_line(name):
  for field in dataclasses.fields(methods.make(name)):
    if not isinstance(field.default, bool | str):
      bad = -1 if isinstance(field.default, int) else float("nan")
      with pytest.raises(ValueError, match=rf"^{field.name} {bad}: use [^\n]+$"):
        methods.make(name, **{field.name: bad})


@every_method
def test_an_unknown_field_is_refused(name):
  with pytest.raises(ValueError, match=f"^method {name} has no field 'lambd'.*; it has: "):
    methods.make(name, lambd=0.5)


def test_the_nearest_field_and_method_are_named():
  with pytest.raises(ValueError, match=r"has no field 'forget_rato'.*did you mean 'forget_ratio'"):
    methods.make("siss", forget_rato=0.5)
  with pytest.raises(ValueError, match=r"no method 'sis'.*did you mean 'siss'.*denoising"):
    methods.make("sis")


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_a_forget_gradient_without_a_norm_is_left_out(bad):
  g_x, g_a = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, bad])}
  for norm in (None, 5.0):
    direction, metrics = methods.subtract_scaled(g_x, g_a, norm, 0.1)
    np.testing.assert_array_equal(direction["w"], g_x["w"])
    assert metrics["forget_skipped"] == 1 and metrics["forget_scale"] == 0
    assert all(np.isfinite(v) for v in metrics.values())


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_the_forget_gradient_gets_the_norm_that_is_asked(size):
  g_x = {"w": jnp.array([3.0]), "b": jnp.array([4.0])}
  g_a = {"w": jnp.array([0.0]), "b": jnp.array([size])}
  for norm, ratio, want in ((5.0, 0.1, 5.0), (None, 0.1, 0.5)):
    direction, metrics = methods.subtract_scaled(g_x, g_a, norm, ratio)
    np.testing.assert_allclose(g_x["b"] - direction["b"], want, rtol=1e-6)
    np.testing.assert_array_equal(g_x["w"], direction["w"])
    np.testing.assert_allclose(metrics["norm_x"], 5, rtol=1e-6)
    np.testing.assert_allclose(metrics["norm_a"] * metrics["forget_scale"], want, rtol=1e-6)
    assert metrics["forget_skipped"] == 0
