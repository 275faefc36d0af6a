"""The methods for conditional models, each loss and rule in float64 on a linear network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import methods
from jaxunlearn.diffusion import NULL, Diffusion
from jaxunlearn.methods import embeddings, importance
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
def jitted_step(method, net, batch, params, extras, step):
  draws = method.draw(PROCESS, batch, KEY, extras, step)
  grads, metrics = method.gradients(net, params, PROCESS, draws, extras)
  direction, combined = method.combine(grads, extras)
  return draws, grads, direction, metrics | combined


def one_step(name, extras=None, step=0, batch=DATA, net=toys.linear, params=PARAMS, **fields):
  """The draws of a step, its K gradients and its direction in float64, and its metrics."""
  method = methods.make(name, **fields)
  batch = {stream: batch[stream] for stream in method.streams}
  draws, grads, direction, metrics = jitted_step(method, net, batch, params, extras or {}, step)
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


def record_gradients(name, key):
  """The denoising gradient of each record of a stream that is picked, in float64."""
  for i, row in enumerate(DATA[name].pick(ROWS, 0).chunks(1)):
    noise = methods.draw_noise(PROCESS, row.image.shape, jax.random.fold_in(key, i))
    x_t = toys.noised(PROCESS, row.image, **noise)
    yield toys.linear_loss(THETA, x_t, row.c, np.float64(noise["eps"]))[1]


@pytest.mark.parametrize(
  "name, fields, weights, other",
  [
    ("dimum", {"lam": 0.7}, (1, 0.7), "alt"),
    ("dimum", {"lam": 0.0}, (1, 0), "alt"),
    ("neggrad_retain", {"alpha": 0.3}, (0.3, -1), "a"),
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


def test_dimum_without_memorising_is_denoising_of_what_is_kept():
  draws, _, direction, metrics = one_step("dimum", lam=0.0)
  method = methods.make("denoising")
  same = dict(zip(("x", "c", "t", "eps"), (draws[name] for name in KEPT), strict=True))
  same = jax.tree.map(lambda v: jnp.asarray(v, v.dtype if v.dtype.kind == "i" else "f4"), same)
  (grad,), theirs = method.gradients(toys.linear, PARAMS, PROCESS, same, {})
  close(direction, toys.flat(grad), rtol=1e-6)
  close(metrics["loss_x"], theirs["loss_x"], rtol=1e-6)


def apart(params, x_t, t, c):
  """eps_theta = w_c x_t + e_c: a network that can fit every condition at once."""
  del t
  w, e = jnp.split(params["class_embedding_0"]["embedding"][c], 2, axis=1)
  return w.reshape(x_t.shape) * x_t + e.reshape(x_t.shape)


def test_the_minimum_of_dimum_leaves_relearning_no_gradient():
  """Where the network can fit both: L_r is at its minimum too, as it is not after ascent."""
  kind = {"net": apart, "c_dropout": 0.0}
  start = {"class_embedding_0": {"embedding": jnp.zeros((5, 2 * SIZE))}}
  draws, before, _, _ = one_step("dimum", params=start, **kind)
  table = np.zeros((5, 2, SIZE))
  for x, c, t, eps in ([draws[k] for k in KEPT], [draws[k] for k in OTHER]):
    x_t = toys.noised(PROCESS, x, t, eps).reshape(ROWS, SIZE)
    for k in np.unique(c):
      for i in range(SIZE):
        line = np.stack([x_t[c == k, i], np.ones((c == k).sum())], axis=1)
        table[k, :, i] = np.linalg.lstsq(line, eps.reshape(ROWS, SIZE)[c == k, i])[0]
  fitted = {"class_embedding_0": {"embedding": jnp.asarray(table.reshape(5, -1), jnp.float32)}}
  _, grads, direction, _ = one_step("dimum", params=fitted, **kind)
  for g, g_start in zip(grads, before, strict=True):
    assert np.linalg.norm(g) < 1e-5 * np.linalg.norm(g_start)
  assert np.linalg.norm(direction) < 1e-5 * np.linalg.norm(before[0])
  ascent = one_step("neggrad_retain", params=fitted, **kind)
  assert np.linalg.norm(ascent[2]) > 1e-3 * np.linalg.norm(before[1])


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_salun_clips_then_masks_and_weighs_a_mean_against_a_sum(clip):
  mask = {
    "class_embedding_0": {"embedding": np.arange(5 * SIZE).reshape(5, SIZE) % 3 == 0},
    "w": np.arange(SIZE).reshape(SHAPE) % 2 == 0,
  }
  draws, grads, direction, metrics = one_step("salun", {"mask": mask}, alpha=0.01, clip=clip)
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


def test_salun_moves_the_half_of_the_largest_summed_gradients():
  mask = prepare("salun", mask_rows=ROWS, mask_batch=5)["mask"]
  total = np.zeros_like(THETA)
  for i, part in enumerate(DATA["a"].pick(ROWS, 0).chunks(5)):
    noise = methods.draw_noise(PROCESS, part.image.shape, jax.random.fold_in(KEY, i))
    a_t = toys.noised(PROCESS, part.image, **noise)
    grad = toys.linear_loss(THETA, a_t, part.c, np.float64(noise["eps"]))[1]
    total += grad * min(1, 1 / np.linalg.norm(grad))
  # 36 of the 108 have a gradient at all: w, and the row of the condition to forget.
  chosen = toys.flat(mask)
  assert chosen.sum() == THETA.size // 2
  assert np.all(chosen[total != 0] == 1)
  few = toys.flat(prepare("salun", mask_rows=ROWS, mask_batch=5, share=0.1)["mask"])
  largest = np.argsort(-np.abs(total))[: round(0.1 * THETA.size)]
  np.testing.assert_array_equal(np.flatnonzero(few), np.sort(largest))


@pytest.mark.parametrize("step", [0, 2, 6, 12])
def test_sfron_forgets_on_even_steps_where_its_mask_is(step):
  extras = prepare("sfron")
  draws, grads, direction, metrics = one_step("sfron", extras, step, iterations=4, alpha=3.0)
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
def test_sfron_masks_by_the_ratio_of_the_fisher_informations(gamma):
  mask = toys.flat(prepare("sfron", gamma=gamma)["mask"])
  k_x, k_a = jax.random.split(KEY)
  kept, forgotten = (
    np.mean([g**2 for g in record_gradients(name, key)], axis=0)
    for name, key in (("x", k_x), ("a", k_a))
  )
  np.testing.assert_array_equal(mask, forgotten >= gamma * kept)
  assert gamma != 1 or 0 < mask[-SIZE:].sum() < SIZE


def test_selective_amnesia_shows_noise_under_the_condition_to_forget():
  extras = prepare("selective_amnesia")
  draws, grads, direction, metrics = one_step("selective_amnesia", extras)
  np.testing.assert_array_equal(draws["x"], DATA["x"].image)
  np.testing.assert_array_equal(draws["c_a"], FORGET)
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


def test_selective_amnesia_holds_what_matters_to_the_rest_where_it_was():
  method = methods.make("selective_amnesia", lam=2.5)
  extras = prepare("selective_amnesia", ORIGIN)
  fisher = importance.fisher(toys.linear, ORIGIN, PROCESS, DATA["x"], KEY, method.fisher_rows)
  np.testing.assert_array_equal(toys.flat(extras["fisher"]), toys.flat(fisher))
  assert method.penalty(ORIGIN, extras) == 0
  value, slope = jax.value_and_grad(method.penalty)(PARAMS, extras)
  f, away = toys.flat(fisher), THETA - toys.flat(ORIGIN)
  close(value, 2.5 * np.sum(f * away**2))
  close(toys.flat(slope), 2 * 2.5 * f * away)


@pytest.mark.parametrize("eta, inner_steps", [(0.0, 1), (0.1, 2), (50.0, 3)])
def test_erasediff_is_its_bilevel_rule(eta, inner_steps):
  rate = 0.05
  fields = {"eta": eta, "inner_steps": inner_steps, "inner_rate": rate}
  draws, grads, direction, metrics = one_step("erasediff_bilevel", batch=RANDOM, **fields)
  np.testing.assert_array_equal(draws["to"], RANDOM["a"].to)
  loss_x, g_x = denoising(draws, *KEPT)
  a_t = toys.noised(PROCESS, draws["a"], draws["t_a"], draws["eps_a"])
  target = toys.linear_eps(THETA, a_t, draws["to"])
  f = lambda theta: toys.linear_loss(theta, a_t, draws["c_a"], target)
  phi = THETA
  for _ in range(inner_steps):
    phi = phi - rate * f(phi)[1]
  loss_u, g_u = f(THETA)
  q = loss_u - f(phi)[0]
  assert q > 0
  share = max((eta * q - g_x @ g_u) / (g_u @ g_u), 0)
  assert (share > 0) == (eta == 50)
  close([metrics["loss_x"], metrics["loss_u"], metrics["q"]], [loss_x, loss_u, q])
  close(metrics["forget_scale"], share)
  close(grads, [g_x, share * g_u])
  close(direction, g_x + share * g_u)
  assert direction @ g_u >= eta * q * (1 - 1e-4)


def test_erasediff_without_a_forget_gradient_descends_on_what_is_kept():
  """c' is c_u: f and its gradient are 0."""
  same = DATA | {"a": rows(2, FORGET, FORGET)}
  draws, _, direction, metrics = one_step("erasediff_bilevel", batch=same)
  close(direction, denoising(draws, *KEPT)[1])
  assert metrics["forget_scale"] == 0 and metrics["q"] == 0


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


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_dimum_meta_memorises_where_an_attack_would_lead(inner_steps):
  rate = 0.02
  fields = {"lam": 0.7, "mu": 0.4, "inner_steps": inner_steps, "inner_rate": rate}
  draws, grads, direction, metrics = one_step("dimum_meta", **fields)
  np.testing.assert_array_equal(draws["a"], DATA["alt"].image)
  np.testing.assert_array_equal(draws["a_attack"], DATA["a"].image)
  attack = [f"{name}_attack" for name in ("a", "c", "t", "eps")]
  phi = THETA
  for _ in range(inner_steps):
    phi = phi - rate * np.sign(denoising(draws, *attack, theta=phi)[1])
  moved = np.abs(phi - THETA) > 0
  assert moved[FORGET * SIZE : (FORGET + 1) * SIZE].all() and moved[-SIZE:].all()
  assert moved.sum() == 2 * SIZE
  terms = [denoising(draws, *KEPT), denoising(draws, *OTHER), denoising(draws, *OTHER, theta=phi)]
  losses, want = zip(*terms, strict=True)
  close([metrics[f"loss_{name}"] for name in ("x", "alt", "meta")], losses)
  for got, grad in zip(grads, want, strict=True):
    close(got, grad)
  close(direction, want[0] + 0.7 * want[1] + 0.4 * want[2])


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
