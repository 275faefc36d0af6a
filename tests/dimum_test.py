"""DiMUM and its defences against relearning, each in float64 on a linear network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import methods
from jaxunlearn.methods import dimum_projected, importance
from tests import toys
from tests.linear_steps import (
  DATA,
  FORGET,
  KEPT,
  KEY,
  OTHER,
  PARAMS,
  PROCESS,
  ROWS,
  SIZE,
  THETA,
  close,
  denoising,
  one_step,
  prepare,
)


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


ATTACK = [f"{name}_attack" for name in ("a", "c", "t", "eps")]


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_dimum_meta_memorises_where_an_attack_would_lead(inner_steps):
  rate = 0.02
  fields = {"lam": 0.7, "mu": 0.4, "inner_steps": inner_steps, "inner_rate": rate}
  draws, grads, direction, metrics = one_step("dimum_meta", **fields)
  np.testing.assert_array_equal(draws["a"], DATA["alt"].image)
  np.testing.assert_array_equal(draws["a_attack"], DATA["a"].image)
  phi = attacked(draws, inner_steps, rate)
  moved = np.abs(phi - THETA) > 0
  assert moved[FORGET * SIZE : (FORGET + 1) * SIZE].all() and moved[-SIZE:].all()
  assert moved.sum() == 2 * SIZE
  memorises_at(phi, draws, grads, metrics)
  close(direction, grads[0] + 0.7 * grads[1] + 0.4 * grads[2])


def attacked(draws, steps, rate):
  """The parameters after sign steps of a simulated attack."""
  phi = THETA
  for _ in range(steps):
    phi = phi - rate * np.sign(denoising(draws, *ATTACK, theta=phi)[1])
  return phi


def memorises_at(phi, draws, grads, metrics):
  terms = [denoising(draws, *KEPT), denoising(draws, *OTHER), denoising(draws, *OTHER, theta=phi)]
  losses, want = zip(*terms, strict=True)
  close([metrics[f"loss_{name}"] for name in ("x", "alt", "meta")], losses)
  for got, grad in zip(grads, want, strict=True):
    close(got, grad)


def test_dimum_against_several_attacks_simulates_what_was_drawn():
  """Few pictures of the concept, or what is kept; as many steps and at the rate that were drawn."""
  fields = {"inner_steps": 3, "inner_rate": 0.02, "spread": 2.0}
  kinds = set()
  for key in map(jax.random.key, range(12)):
    draws, grads, _, metrics = one_step("dimum_attacks", key=key, **fields)
    (steps,), (rate,) = np.unique(draws["steps"]), np.unique(draws["rate"])
    shown = "a" if np.array_equal(draws["a_attack"], DATA["a"].image) else "x"
    np.testing.assert_array_equal(draws["a_attack"], DATA[shown].image)
    np.testing.assert_array_equal(draws["c_attack"], DATA[shown].c)
    assert 1 <= steps <= 3 and 0.01 <= rate <= 0.04
    memorises_at(attacked(draws, steps, rate), draws, grads, metrics)
    kinds |= {(shown, int(steps)), "slow" if rate < 0.02 else "fast"}
  assert len(kinds) >= 6


def test_dimum_with_sharpness_memorises_where_its_loss_is_largest():
  rho = 0.3
  draws, grads, direction, metrics = one_step("dimum_sharpness", lam=0.7, rho=rho)
  slope = denoising(draws, *OTHER)[1]
  phi = THETA + rho * slope / np.linalg.norm(slope)
  (loss_x, g_x), (loss_alt, g_alt) = denoising(draws, *KEPT), denoising(draws, *OTHER, theta=phi)
  close([metrics["loss_x"], metrics["loss_alt"]], [loss_x, loss_alt])
  assert loss_alt > denoising(draws, *OTHER)[0]
  close(grads[1], g_alt)
  close(direction, g_x + 0.7 * g_alt)


def test_dimum_projected_leaves_out_what_retain_gradients_span():
  extras = prepare("dimum_projected", batches=3, batch=ROWS // 3)
  one = lambda i: jax.tree.map(lambda leaf: leaf[i], extras["basis"])
  basis = np.stack([toys.flat(one(i)) for i in range(3)])
  np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-6)
  _, grads, direction, _ = one_step("dimum_projected", extras, lam=0.7)
  close(direction, grads[0] + 0.7 * (grads[1] - basis.T @ (basis @ grads[1])))
  assert np.linalg.norm(basis @ grads[1]) > 100 * np.linalg.norm(basis @ (direction - grads[0]))
  whole = importance.batch_gradients(
    toys.linear, PARAMS, PROCESS, DATA["x"], KEY, rows=ROWS, batch=ROWS // 3, w=0.0, clip=None
  )
  for grad in map(toys.flat, whole):
    close(basis.T @ (basis @ grad), grad, rtol=1e-4)


def test_a_gradient_that_the_basis_has_already_adds_nothing_to_it():
  grad = jax.tree.map(jnp.ones_like, PARAMS)
  unit = jax.tree.map(lambda leaf: leaf / len(THETA) ** 0.5, grad)
  same = dimum_projected.off(grad, jax.tree.map(lambda leaf: leaf[None], unit))
  np.testing.assert_array_equal(toys.flat(dimum_projected._unit(same, grad)), 0)
