"""The methods for conditional models, each loss and rule in float64 on a linear network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import methods
from jaxunlearn.diffusion import NULL
from jaxunlearn.methods import embeddings, importance
from tests import toys
from tests.linear_steps import (
  DATA,
  FORGET,
  KEPT,
  KEY,
  ORIGIN,
  OTHER,
  PARAMS,
  PROCESS,
  RANDOM,
  ROWS,
  SHAPE,
  SIZE,
  THETA,
  close,
  denoising,
  one_step,
  prepare,
  rows,
)


@pytest.mark.parametrize(
  "name, fields, weights, other",
  [
    ("dimum", {"lam": 0.7}, (1, 0.7), "alt"),
    ("dimum", {"lam": 0.0}, (1, 0), "alt"),
    ("neggrad_retain", {"alpha": 0.3, "a_dropout": 0.0}, (0.3, -1), "a"),
  ],
)
def test_two_denoising_losses_are_weighted(name, fields, weights, other):
  draws, grads, direction, metrics = one_step(name, **fields)
  np.testing.assert_array_equal(draws["a"], DATA[other].image)
  np.testing.assert_array_equal(draws["c_a"], FORGET)
  loss_x, g_x = denoising(draws, *KEPT)
  loss_a, g_a = denoising(draws, *OTHER)
  close([metrics["loss_x"], metrics[f"loss_{other}"]], [loss_x, loss_a])
  close(grads, [g_x, g_a])
  close(direction, weights[0] * g_x + weights[1] * g_a)


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_salun_clips_then_masks_and_weighs_a_mean_against_a_sum(clip):
  mask = {
    "class_embedding_0": {"embedding": np.arange(5 * SIZE).reshape(5, SIZE) % 3 == 0},
    "w": np.arange(SIZE).reshape(SHAPE) % 2 == 0,
  }
  fields = {"alpha": 0.01, "clip": clip, "a_dropout": 0.0}
  draws, grads, direction, metrics = one_step("salun", {"mask": mask}, **fields)
  loss_x, g_x = denoising(draws, *KEPT)
  a_t = toys.noised(PROCESS, draws["a"], draws["t_a"], draws["eps_a"])
  np.testing.assert_array_equal(draws["to"], 0)
  target = toys.linear_eps(THETA, a_t, draws["to"])
  loss_u, g_u = toys.linear_loss(THETA, a_t, draws["c_a"], target, 1 / SIZE)
  close([metrics["loss_x"], metrics["loss_u"]], [loss_x, loss_u])
  close(grads[0], g_x)
  close(grads[1], g_u)
  total = 0.01 * g_x + g_u
  norm = np.linalg.norm(total)
  assert (clip < norm) == (clip < 1)
  close(direction, toys.flat(mask) * total * min(1, clip / norm))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_salun_moves_what_has_the_largest_summed_gradients(share):
  kind = {"rows": ROWS, "batch": 5, "w": 2.0, "clip": 1.0}
  grads = importance.batch_gradients(toys.linear, PARAMS, PROCESS, DATA["a"], KEY, **kind)
  total = toys.flat(importance.summed(grads))  # importance_test.py has its closed form
  mask = toys.flat(prepare("salun", mask_batch=5, share=share)["mask"])
  largest = np.argsort(-np.abs(total), kind="stable")[: round(share * THETA.size)]
  np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(largest))
  # Guidance: the null's row moves too.
  assert mask[4 * SIZE : 5 * SIZE].any() or share < 0.5


@pytest.mark.parametrize("step", [0, 2, 6, 12])
def test_sfron_forgets_on_even_steps_where_its_mask_is(step):
  extras = prepare("sfron")
  fields = {"iterations": 4, "alpha": 3.0}
  draws, grads, direction, metrics = one_step("sfron", extras, step, **fields)
  np.testing.assert_array_equal(draws["image"], DATA["a"].image)
  x_t = toys.noised(PROCESS, draws["image"], draws["t"], draws["eps"])
  error = np.sum((draws["eps"] - toys.linear_eps(THETA, x_t, draws["c"])) ** 2, axis=(1, 2, 3))
  alpha = 3 * (1 + np.cos(np.pi * min(step / 2 / 4, 1))) / 2
  weight = -alpha * error**-0.5 / np.mean(error**-0.5)
  loss, grad = toys.linear_loss(THETA, x_t, draws["c"], draws["eps"], weight)
  np.testing.assert_allclose(metrics["loss_a"], loss, rtol=1e-5, atol=1e-4)
  np.testing.assert_array_equal(grads[0], 0)
  np.testing.assert_allclose(grads[1], grad, rtol=1e-5, atol=1e-4)
  np.testing.assert_array_equal(direction, toys.flat(extras["mask"]) * grads[1])
  assert (alpha == 0) == (step == 12)


@pytest.mark.parametrize("step", [1, 3])
def test_sfron_remembers_on_odd_steps_everywhere(step):
  draws, grads, direction, metrics = one_step("sfron", prepare("sfron"), step)
  np.testing.assert_array_equal(draws["image"], DATA["x"].image)
  loss, grad = denoising(draws, "image", "c", "t", "eps")
  close(metrics["loss_x"], loss)
  close(direction, grad)
  np.testing.assert_array_equal(grads[1], 0)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_sfron_masks_by_the_ratio_of_squared_batch_gradients(gamma):
  mask = toys.flat(prepare("sfron", gamma=gamma, mask_batch=5)["mask"])
  kind = {"rows": ROWS, "batch": 5, "w": 2.0, "clip": 1.0}
  kept, forgotten = (
    importance.mean_square(
      importance.batch_gradients(toys.linear, PARAMS, PROCESS, DATA[name], key, **kind)
    )
    for name, key in zip("xa", jax.random.split(KEY), strict=True)
  )
  kept, forgotten = (np.float32(toys.flat(tree)) for tree in (kept, forgotten))
  np.testing.assert_array_equal(mask, forgotten >= np.float32(gamma) * kept)
  assert gamma != 1 or 0 < mask[-SIZE:].sum() < SIZE


FISHER = {"fisher_rows": 3}
REPLAY = DATA | {"all": rows(5, np.arange(ROWS) % 4)}


def test_selective_amnesia_shows_noise_under_the_condition_to_forget():
  draws, grads, direction, metrics = one_step("selective_amnesia", batch=REPLAY)
  np.testing.assert_array_equal(draws["x"], DATA["x"].image)
  np.testing.assert_array_equal(draws["c_x"], DATA["x"].c)
  np.testing.assert_array_equal(draws["c_a"], FORGET)
  np.testing.assert_array_equal(draws["t_a"], draws["t"])
  assert np.all(draws["eps_a"] != draws["eps"])
  u = draws["a"].ravel()
  assert u.min() >= -1 and u.max() < 1
  # The moments of 216 uniform draws, within four of their standard errors.
  assert abs(u.mean()) < 4 * np.sqrt(1 / 3 / u.size)
  assert abs(np.mean(u**2) - 1 / 3) < 4 * np.sqrt(4 / 45 / u.size)
  loss_x, g_x = denoising(draws, *KEPT)
  loss_u, g_u = denoising(draws, *OTHER)
  close([metrics["loss_x"], metrics["loss_u"]], [loss_x, loss_u])
  close(grads, [g_x, g_u])
  close(direction, g_x + g_u)


def test_selective_amnesia_holds_what_matters_to_every_class_where_it_was():
  method = methods.make("selective_amnesia", lam=2.5, **FISHER)
  extras = method.prepare(toys.linear, ORIGIN, PROCESS, REPLAY, KEY)
  kind = {"rows": 3, "chunk": 100, "c_dropout": 0.1}
  fisher = importance.fisher(toys.linear, ORIGIN, PROCESS, REPLAY["all"], KEY, **kind)
  np.testing.assert_array_equal(toys.flat(extras["fisher"]), toys.flat(fisher))
  assert method.penalty(ORIGIN, extras) == 0
  value, slope = jax.value_and_grad(method.penalty)(PARAMS, extras)
  f, away = toys.flat(fisher), THETA - toys.flat(ORIGIN)
  close(value, 2.5 * np.sum(f * away**2))
  close(toys.flat(slope), 2 * 2.5 * f * away)


def bilevel(lam, step):
  """What `erasediff_bilevel` makes of a step in turns of 2 and 1."""
  fields = {"lam": lam, "inner_steps": 2, "outer_steps": 1, "a_dropout": 0.0}
  return one_step("erasediff_bilevel", step=step, batch=RANDOM, **fields)


@pytest.mark.parametrize("lam", [0.1, None])
def test_erasediff_steps_outside_by_both_means_over_pixels(lam):
  draws, grads, direction, metrics = bilevel(lam, 2)
  np.testing.assert_array_equal(draws["to"], RANDOM["a"].to)
  np.testing.assert_array_equal(draws["t_a"], draws["t"])
  loss_x, g_x = denoising(draws, *KEPT, weight=1 / SIZE)
  a_t = toys.noised(PROCESS, draws["a"], draws["t_a"], draws["eps_a"])
  target = toys.linear_eps(THETA, a_t, draws["to"])
  loss_u, g_u = toys.linear_loss(THETA, a_t, draws["c_a"], target, 1 / SIZE)
  close([metrics["loss_x"], metrics["loss_u"]], [loss_x, loss_u])
  close(grads, [g_x, g_u])
  cosine = g_x @ g_u / np.linalg.norm(g_x) / np.linalg.norm(g_u)
  share = max(0.1 - cosine, 0) if lam is None else lam
  np.testing.assert_allclose(metrics["forget_scale"], share, atol=1e-6)
  close(direction, g_x + share * g_u)


@pytest.mark.parametrize("lam", [0.1, None])
def test_erasediff_steps_inside_by_the_forget_loss_alone(lam):
  for step in (0, 1):
    _, grads, direction, metrics = bilevel(lam, step)
    np.testing.assert_array_equal(grads[0], 0)
    np.testing.assert_array_equal(direction, grads[1])
    assert metrics["loss_x"] == 0 and metrics["loss_u"] > 0


def test_erasediff_goes_back_to_where_its_inner_steps_set_out_and_keeps_adam():
  """Two turns of 2 inner and 2 outer steps, beside Adam from its definition in float64."""
  method = methods.make("erasediff_bilevel", inner_steps=2, outer_steps=2)
  params, extras = {"w": jnp.asarray([1.0, -2.0])}, {"theta": {"w": jnp.asarray([1.0, -2.0])}}
  rng, tx = np.random.default_rng(0), optax.adam(0.1)
  opt = tx.init(params)
  theta = anchor = np.array([1.0, -2.0])
  m = v = np.zeros(2)
  for step in range(8):
    g = rng.standard_normal(2)
    updates, opt = tx.update({"w": jnp.asarray(g, jnp.float32)}, opt)
    moved = optax.apply_updates(params, updates)
    params, extras = method.settle(moved, extras, jnp.int32(step))
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    correct = np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
    theta = theta - 0.1 * m / (1 - 0.9 ** (step + 1)) / correct
    if step % 4 == 1:
      theta = anchor
    if step % 4 >= 2:
      anchor = theta
    np.testing.assert_allclose(params["w"], theta, rtol=1e-4)
    np.testing.assert_allclose(extras["theta"]["w"], anchor, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 50.0])
def test_bomes_control_is_eta_times_the_squared_norm(eta):
  draws, _, direction, metrics = one_step("erasediff_bome", batch=RANDOM, eta=eta)
  loss_x, g_x = denoising(draws, *KEPT)
  a_t = toys.noised(PROCESS, draws["a"], draws["t_a"], draws["eps_a"])
  target = toys.linear_eps(THETA, a_t, draws["to"])
  loss_u, g_q = toys.linear_loss(THETA, a_t, draws["c_a"], target)
  close([metrics["loss_x"], metrics["loss_u"]], [loss_x, loss_u])
  phi = eta * (g_q @ g_q)
  share = max((phi - g_x @ g_q) / (g_q @ g_q), 0)
  assert (share > 0) == (eta > 0)
  close(direction, g_x + share * g_q)
  assert direction @ g_q >= phi * (1 - 1e-4)


def test_erasediff_without_a_forget_gradient_descends_on_what_is_kept():
  """c' is c_u: f and its gradient are 0."""
  same = DATA | {"a": rows(2, FORGET, FORGET)}
  draws, _, direction, metrics = one_step("erasediff_bome", batch=same)
  close(direction, denoising(draws, *KEPT)[1])
  assert metrics["forget_scale"] == 0 and metrics["loss_u"] == 0


@pytest.mark.parametrize("eta", [0.0, 1.5])
def test_esd_goes_where_the_frozen_model_points_away_from_the_condition(eta):
  extras = prepare("esd", ORIGIN)
  draws, grads, direction, metrics = one_step("esd", extras, eta=eta)
  a_t = toys.noised(PROCESS, draws["a"], draws["t"], draws["eps"])
  frozen = lambda c: toys.linear_eps(toys.flat(ORIGIN), a_t, np.full(ROWS, c))
  target = frozen(NULL) - eta * (frozen(FORGET) - frozen(NULL))
  loss, grad = toys.linear_loss(THETA, a_t, draws["c"], target)
  close(metrics["loss_a"], loss)
  close(grads, [grad])
  close(direction, grad)


def test_esd_starts_at_the_square_of_how_far_the_condition_is_from_none():
  _, _, _, metrics = one_step("esd", prepare("esd"), eta=1.5)
  table = np.float64(PARAMS["class_embedding_0"]["embedding"])
  close(metrics["loss_a"], np.sum((2.5 * (table[NULL] - table[FORGET])) ** 2))


def test_esd_moves_only_what_is_named():
  extras = prepare("esd", only="class_embedding")
  _, grads, direction, _ = one_step("esd", extras, only="class_embedding")
  np.testing.assert_array_equal(direction[:-SIZE], grads[0][:-SIZE])
  np.testing.assert_array_equal(direction[-SIZE:], 0)
  assert np.any(direction) and np.all(grads[0][-SIZE:])
  with pytest.raises(
    ValueError, match=r"^only is attn; use a part of .*, like class_embedding_0/emb"
  ):
    prepare("esd", only="attn")


def copied(params, forgotten):
  return methods.make("embedding_copy").start(params, {"a": forgotten}, KEY)


def test_embedding_copy_writes_one_row_over():
  params = copied(PARAMS, DATA["a"])
  before, after = (p["class_embedding_0"]["embedding"] for p in (PARAMS, params))
  np.testing.assert_array_equal(after[FORGET], before[0])
  others = np.arange(5) != FORGET
  np.testing.assert_array_equal(after[others], before[others])
  np.testing.assert_array_equal(params["w"], PARAMS["w"])
  assert params.keys() == PARAMS.keys()
  x = jnp.asarray(DATA["a"].image)
  asked = lambda p, c: toys.linear(p, x, 0, np.full(ROWS, c))
  np.testing.assert_array_equal(asked(params, FORGET), asked(PARAMS, 0))


def test_embedding_copy_of_a_style_and_of_nothing():
  """The style is the second condition; mapped to null, its row becomes the last one."""
  c = np.stack([np.arange(ROWS) % 4, np.full(ROWS, 1)], axis=1).astype(np.int32)
  params = PARAMS | {"class_embedding_1": {"embedding": jnp.arange(6.0).reshape(3, 2)}}
  for other, want in ((0, [[0, 1], [0, 1], [4, 5]]), (NULL, [[0, 1], [4, 5], [4, 5]])):
    to = np.stack([c[:, 0], np.full(ROWS, other)], axis=1).astype(np.int32)
    got = copied(params, DATA["a"]._replace(c=c, to=to))
    np.testing.assert_array_equal(got["class_embedding_1"]["embedding"], want)
    np.testing.assert_array_equal(toys.flat({k: got[k] for k in PARAMS}), THETA)


@pytest.mark.parametrize(
  "c, to",
  [
    (None, None),
    (FORGET, None),
    (FORGET, FORGET),
    (FORGET, np.arange(ROWS) % 3),
    (np.arange(ROWS) % 3, FORGET),
  ],
)
def test_a_stream_that_does_not_map_one_condition_to_one_is_refused(c, to):
  with pytest.raises(ValueError, match=r"^the stream `a` maps [^\n]*to=next"):
    embeddings.concept_of(rows(2, c, to))


def test_a_model_without_a_table_is_refused():
  with pytest.raises(ValueError, match=r"^the model has no class_embedding_0; use"):
    copied({"w": PARAMS["w"]}, DATA["a"])


def test_embedding_inversion_moves_one_row_by_its_gradient():
  draws, grads, direction, metrics = one_step("embedding_inversion", prepare("embedding_inversion"))
  loss, grad = denoising(draws, "a", "c", "t", "eps")
  close(metrics["loss_a"], loss)
  close(grads, [grad])
  row = np.zeros_like(THETA)
  row[FORGET * SIZE : (FORGET + 1) * SIZE] = 1
  np.testing.assert_array_equal(direction, grads[0] * row)
  assert np.all(direction[row == 1])
