"""UNDO: what training begins with, and its loss in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, unlearn_fashion
from jaxunlearn import build, methods
from jaxunlearn.diffusion import NULL, Diffusion
from jaxunlearn.methods import undo
from jaxunlearn.reports import lineage
from jaxunlearn.weights import of_run

PROCESS = Diffusion()
PARAMS = {"kernel": jnp.arange(1200.0).reshape(30, 40), "bias": jnp.arange(40.0)}


def apply(params, x_t, t, c):
  return jnp.tanh(x_t * params["w"]) + params["b"] * wide(c + t / PROCESS.T)


def wide(values):
  return values[:, None, None, None]


def start(alpha, beta=1.0):
  return undo.Method(alpha=alpha, beta=beta).start(PARAMS, {}, jax.random.key(0))


def test_undamaged_it_is_the_unlearned_model_and_learns_nothing():
  jax.tree.map(np.testing.assert_array_equal, start(0.0), PARAMS)
  method, (params, draws, _) = undo.Method(), case()
  teacher = jax.tree_util.Partial(apply, params)
  grads, _ = method.gradients(apply, params, PROCESS, draws, {"teacher": params})
  assert float(teacher(draws["x"], draws["t"], draws["c_x"]).std()) > 0.1
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_noise_has_the_deviation_of_the_kernel_and_spares_what_has_one_axis():
  old, deviation = np.asarray(PARAMS["kernel"]), float(np.std(PARAMS["kernel"]))
  for alpha, beta in ((1.0, 1.0), (0.4, 2.0)):
    made = start(alpha, beta)
    noise = (np.asarray(made["kernel"]) - (1 - alpha) * old) / (alpha * beta)
    assert np.std(noise) == pytest.approx(deviation, rel=0.05)
    assert abs(np.corrcoef(noise.ravel(), old.ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(made["bias"], PARAMS["bias"])


def test_an_ancestor_stands_for_the_noise():
  older = jax.tree.map(lambda leaf: -2 * leaf, PARAMS)
  begin = lambda alpha, **fields: methods.begin(
    undo.Method(alpha=alpha, onto="assets:older"),
    apply,
    PARAMS,
    PROCESS,
    {},
    jax.random.key(0),
    **fields,
  )
  params, extras = begin(1.0, onto=older)
  jax.tree.map(np.testing.assert_array_equal, params, older)
  jax.tree.map(np.testing.assert_array_equal, extras["teacher"], PARAMS)
  some, _ = begin(0.25, onto=older)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.25 * b, rtol=1e-6), some, PARAMS)
  with pytest.raises(ValueError, match="begins with 'assets:older'; give its parameters as `onto`"):
    begin(1.0)


def test_a_run_begins_with_what_is_trained_of_the_ancestor():
  config, older = unlearn_fashion.get_config(), "assets:retrain_fashion_trouser"
  config.method = common.method("undo", alpha=1.0, onto=older)
  config.trained.pattern = "^up_"
  setup = build.build(config)
  params = build.start_params(setup)
  state = build.make_state(setup, params)
  want = setup.split(of_run.start(older, setup.net, 0, setup.mesh))[0]
  jax.tree.map(np.testing.assert_array_equal, state.params, want)
  jax.tree.map(np.testing.assert_array_equal, state.extras["teacher"], setup.split(params)[0])
  origins = {one["field"]: one["origin"] for one in lineage.origins(config.to_dict())}
  assert origins == {"init_from": config.init_from, "method.onto": older}
  config.trained.rank = 2
  setup = build.build(config)
  with pytest.raises(
    ValueError, match=r"retrain_fashion_trouser' and trained\.rank is 2; use rank 0"
  ):
    build.make_state(setup, params)


def case(rows=5):
  rng = np.random.default_rng(0)
  image = lambda: rng.normal(size=(rows, 2, 2, 3)).astype(np.float32)
  numbers = lambda high: rng.integers(0, high, rows).astype(np.int32)
  draws = {"x": image(), "eps": image(), "t": numbers(1000), "c_x": numbers(4)}
  draws |= {"a": image(), "eps_a": image(), "t_a": numbers(1000), "c_a": numbers(4)}
  params, teacher = ({"w": image()[0, 0, 0], "b": image()[0, 0, 0]} for _ in range(2))
  return params, jax.tree.map(jnp.asarray, draws), teacher


def said(p, x_t, t, c):
  return np.tanh(x_t * p["w"]) + p["b"] * wide(c + t / 1000)


def test_the_loss_in_numpy():
  params, draws, teacher = case()
  method = undo.Method(lam=0.7)
  eps_fn = jax.tree_util.Partial(apply, params)
  losses, _ = method.losses(
    eps_fn, PROCESS, draws, {"teacher": jax.tree_util.Partial(apply, teacher)}
  )
  for loss, (x, t, c, eps) in zip(
    losses, (("x", "t", "c_x", "eps"), ("a", "t_a", "c_a", "eps_a")), strict=True
  ):
    x, t, c, eps = (np.float64(draws[name]) for name in (x, t, c, eps))
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t.astype(int)]
    x_t = wide(np.sqrt(abar)) * x + wide(np.sqrt(1 - abar)) * eps
    want = np.square(said(teacher, x_t, t, c) - said(params, x_t, t, c)).sum(axis=(1, 2, 3)).mean()
    assert float(loss) == pytest.approx(want, rel=1e-5)
  c = draws["c_x"].at[0].set(NULL).at[3].set(NULL)
  (taught, _), (noise, _) = (
    undo.Method(null=null).losses(
      eps_fn, PROCESS, {**draws, "c_x": c}, {"teacher": jax.tree_util.Partial(apply, teacher)}
    )[0]
    for null in ("teacher", "noise")
  )
  x, t, eps = (np.float64(draws[name]) for name in ("x", "t", "eps"))
  abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t.astype(int)]
  x_t = wide(np.sqrt(abar)) * x + wide(np.sqrt(1 - abar)) * eps
  rows = [
    np.square(y - said(params, x_t, t, np.float64(c))).sum(axis=(1, 2, 3))
    for y in (said(teacher, x_t, t, np.float64(c)), eps)
  ]
  assert float(taught) == pytest.approx(rows[0].mean(), rel=1e-5)
  assert float(noise) == pytest.approx(np.where(c == NULL, rows[1], rows[0]).mean(), rel=1e-5)
  total, _ = method.combine(({"w": jnp.ones(3)}, {"w": jnp.ones(3)}), {})
  np.testing.assert_allclose(total["w"], 1.7)
  assert methods.make("undo").backwards == 2
