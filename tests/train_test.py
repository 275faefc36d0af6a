"""The update against NumPy in float64; the loop's log, stops and divergence."""

import contextlib
import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import build, checkpoint, train
from jaxunlearn.mesh import processes
from jaxunlearn.reports import writer
from tests import nets, tiny_config

STEPS = 6


def setup_of(net=None, **overrides):
  config = tiny_config.get_config()
  config.update_from_flattened_dict(overrides)
  setup = build.build(config)
  return dataclasses.replace(setup, net=net) if net else setup


def start(setup):
  """Parameters to start from; a UNet's own init takes seconds to compile."""
  own = isinstance(setup.net, nets.Line)
  return setup.net.init(jax.random.key(0)) if own else nets.random_params(setup.net)


def take_steps(setup, steps=STEPS):
  """The states and metrics of some updates, on the host."""
  state = build.make_state(setup, start(setup))
  update = train.make_update(setup, state)
  states, metrics = [jax.device_get(state)], []
  for step in range(steps):
    state, logged = update(state, setup.batch(step))
    states.append(jax.device_get(state))
    metrics.append(jax.device_get(logged))
  return states, metrics


def line_gradient(setup, params, step):
  """d/d(w, b) of mean_B sum_pixels (eps - eps_hat)^2 in float64, from the draws of that step."""
  rng = jax.random.fold_in(jax.random.key(setup.config.seed), step)
  draws = setup.method.draw(setup.process, setup.batch(step), rng, {}, step)
  eps, t = np.asarray(draws["eps"], np.float64), np.asarray(draws["t"])
  abar = setup.process.abar[t, None, None, None]
  x_t = abar**0.5 * np.asarray(draws["x"], np.float64) + (1 - abar) ** 0.5 * eps
  inputs = np.stack([x_t.mean((1, 2, 3)), t / 1000, np.ones(len(t))], axis=1)
  error = inputs @ params["w"] + params["b"] - eps.mean((1, 2, 3))
  slope = 2 * error * x_t[0].size / len(t)
  return {"w": slope @ inputs, "b": slope.sum()}


@pytest.mark.parametrize(("clip", "ema_warmup"), [(2.0, True), (None, False)])
def test_clip_adamw_and_ema_are_the_textbooks(clip, ema_warmup):
  setup = setup_of(
    nets.Line(),
    **{
      "optimizer.learning_rate": 0.1,
      "optimizer.weight_decay": 0.3,
      "optimizer.warmup": 3,
      "optimizer.b1": 0.8,
      "optimizer.b2": 0.95,
      "optimizer.clip": clip,
      "ema": 0.25,
      "ema_warmup": ema_warmup,
    },
  )
  states, metrics = take_steps(setup)
  params = {k: np.asarray(v, np.float64) for k, v in states[0].params.items()}
  ema = dict(params)
  m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
  clipped = 0
  for step in range(STEPS):
    grad = line_gradient(setup, params, step)
    norm = np.sqrt(sum(np.sum(g**2) for g in grad.values()))
    np.testing.assert_allclose(metrics[step]["grad_norm"], norm, rtol=1e-5)
    clipped += norm > 2
    rate = 0.1 * min(step / 3, 1)
    decay = min(0.25, (1 + step) / (10 + step)) if ema_warmup else 0.25
    for k, g in grad.items():
      g = g * min(1, (clip or np.inf) / norm)
      m[k] = 0.8 * m[k] + 0.2 * g
      v[k] = 0.95 * v[k] + 0.05 * g**2
      unbiased = m[k] / (1 - 0.8 ** (step + 1)), v[k] / (1 - 0.95 ** (step + 1))
      step_k = unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8) + 0.3 * params[k]
      params[k] = params[k] - rate * step_k
      ema[k] = decay * ema[k] + (1 - decay) * params[k]
      np.testing.assert_allclose(states[step + 1].params[k], params[k], rtol=2e-5, atol=1e-6)
      np.testing.assert_allclose(states[step + 1].ema[k], ema[k], rtol=2e-5, atol=1e-6)
  assert clipped
  assert int(states[-1].step) == STEPS


@pytest.mark.parametrize(
  ("schedule", "warmup", "rates"),
  [
    ("constant", 0, [1, 1, 1, 1]),
    ("constant", 2, [0, 0.5, 1, 1]),
    ("cosine", 0, [1, 0.75, 0.25, 0]),
    ("cosine", 1, [0, 1, 0.5, 0]),
  ],
)
def test_learning_rates(schedule, warmup, rates):
  """Adam's step is the learning rate where the gradient is constant: b1, b2 cancel."""
  config = tiny_config.get_config()
  config.optimizer.update(schedule=schedule, warmup=warmup, learning_rate=0.5, weight_decay=0.0)
  config.train.steps = 3
  tx = build.make_optimizer(config)
  params = {"w": jnp.zeros(1)}
  state = tx.init(params)
  for rate in rates:
    update, state = tx.update({"w": jnp.ones(1)}, state, params)
    np.testing.assert_allclose(update["w"], -0.5 * rate, rtol=1e-5, atol=1e-7)


def test_no_ema_keeps_none():
  states, _ = take_steps(setup_of(nets.Line(), ema=0.0), 1)
  assert states[-1].ema == {}


def test_bf16_compute_keeps_float32_state_and_losses():
  states, metrics = take_steps(setup_of(**{"model.dtype": "bfloat16"}), 2)
  leaves = jax.tree.leaves((states[-1].params, states[-1].ema, metrics))
  assert {leaf.dtype.name for leaf in leaves} == {"float32"}
  floats = [leaf for leaf in jax.tree.leaves(states[-1].opt) if leaf.dtype.kind == "f"]
  assert {leaf.dtype.name for leaf in floats} == {"float32"}
  assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_the_state_keeps_its_layout():
  setup = setup_of(**{"mesh.data": 2, "mesh.fsdp": 4})
  params = start(setup)
  state = build.make_state(setup, params)
  before = jax.tree.map(lambda a: a.sharding, state)
  after, _ = train.make_update(setup, state)(state, setup.batch(0))
  assert jax.tree.map(lambda a: a.sharding, after) == before
  assert any(not a.is_fully_replicated for a in jax.tree.leaves(after.opt))


class Seen:
  """Stands for the evaluation: counts probes."""

  def __init__(self, value=1.0):
    self.steps, self.value = [], value

  def __call__(self, step, params, frozen):
    self.steps.append(step)
    return {"probe_x": self.value}


def loop(setup, workdir, stopped=lambda: False, probe=None):
  """`train.train` from the newest checkpoint of `workdir`; returns the state or raises."""
  saves = checkpoint.Checkpoints(workdir / "checkpoints", setup.config.train.keep)
  state = build.make_state(setup, start(setup))
  state = saves.restore(state) or state
  try:
    with writer.Writer(workdir / "metrics.jsonl", int(state.step)) as out:
      return train.train(setup, state, saves, out, stopped, probe or Seen())
  finally:
    saves.close()


def stop_after(calls):
  """True from the given call on; the loop asks once a step."""
  count = iter(range(1, 10**6))
  return lambda: next(count) >= calls


def test_every_step_is_logged_and_probes_come_between(tmp_path):
  probe = Seen()
  setup = setup_of(nets.Line(), **{"train.log_every": 5, "eval.every": 6})
  loop(setup, tmp_path, probe=probe)
  lines = writer.read(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines if "loss_x" in line] == list(range(1, 13))
  assert [line["step"] for line in lines if "probe_x" in line] == probe.steps == [6, 12]


@pytest.mark.parametrize("last", [1, 4, 6, 11])
def test_a_stopped_loop_goes_on_as_if_it_had_not(tmp_path, last):
  """At any step: one that is saved anyway, one that is probed, and one between two logs."""
  overrides = {"train.log_every": 5, "eval.every": 6}
  whole = loop(setup_of(nets.Line(), **overrides), tmp_path / "whole")
  with pytest.raises(SystemExit) as stop:
    loop(setup_of(nets.Line(), **overrides), tmp_path / "cut", stop_after(last))
  assert stop.value.code == 143
  assert checkpoint.latest_step(tmp_path / "cut") == last
  resumed = loop(setup_of(nets.Line(), **overrides), tmp_path / "cut")
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
    np.testing.assert_array_equal(a, b)
  logs = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "cut")]
  assert logs[0] == logs[1]


class Bad(nets.Line):
  """A net whose output is not finite once its bias has moved."""

  def apply(self, params, x, t, c=None):
    return super().apply(params, x, t, c) / jnp.where(jnp.abs(params["b"]) > 0.04, 0.0, 1.0)


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  setup = setup_of(Bad(), **{"train.checkpoint_every": 2, "optimizer.learning_rate": 0.01})
  with pytest.raises(train.Diverged, match=r" is (nan|inf) at step \d+;") as error:
    loop(setup, tmp_path)
  assert "\n" not in str(error.value)
  lines = writer.read(tmp_path / "metrics.jsonl")
  bad = [line["step"] for line in lines if isinstance(line["loss_x"], str)]
  assert f"at step {bad[0]};" in str(error.value)
  assert checkpoint.latest_step(tmp_path) == (bad[0] - 1) // 2 * 2 > 0
  good = checkpoint.read_params(tmp_path, build.make_state(setup, start(setup)).params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good))


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  """The learning rate overflows the parameters while loss and gradient are still finite."""
  setup = setup_of(
    nets.Line(), **{"train.checkpoint_every": 1, "optimizer.learning_rate": 3e38, "ema": 0.0}
  )
  setup = dataclasses.replace(setup, tx=_overflowing(setup.tx))
  with pytest.raises(train.Diverged, match="not finite after step 1;"):
    loop(setup, tmp_path)
  assert checkpoint.latest_step(tmp_path) is None


def _overflowing(tx):
  update = lambda *args: (lambda u, s: (jax.tree.map(lambda a: a * 3e38, u), s))(*tx.update(*args))
  return tx._replace(update=update)


def test_a_signal_only_raises_a_flag():
  with processes.stop_signal() as stopped:
    assert not stopped()
    signal.raise_signal(signal.SIGTERM)
    assert stopped()
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_prepared_extras_come_back_from_the_checkpoint(tmp_path, monkeypatch):
  setup = setup_of(nets.Line())
  prepare = lambda value: lambda *_: {"mask": np.full(3, value, np.float32)}
  monkeypatch.setattr(type(setup.method), "prepare", prepare(1.0))
  with pytest.raises(SystemExit):
    loop(setup, tmp_path, stop_after(2))
  monkeypatch.setattr(type(setup.method), "prepare", prepare(2.0))
  np.testing.assert_array_equal(loop(setup, tmp_path).extras["mask"], np.ones(3))


@pytest.fixture
def run(monkeypatch):
  """`train.run` on the line, without a report."""
  monkeypatch.setattr(build.models, "make", lambda **_: nets.Line())
  monkeypatch.setattr(train.report, "write", lambda _: {})

  def run_(workdir, **overrides):
    config = tiny_config.get_config()
    config.update_from_flattened_dict({"train.steps": 2, **overrides})
    return train.run(config, workdir)

  return run_


def test_an_attack_starts_from_another_run(run, tmp_path):
  run(tmp_path / "first")
  config = tiny_config.get_config()
  config.init_from = str(tmp_path / "first")
  setup = build.build(config)
  state = build.make_state(setup, build.start_params(setup))
  saved = checkpoint.read_params(tmp_path / "first", state.params)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(saved), strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(saved["w"], np.ones(3))


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_may_go_on_with_the_optimiser_of_another(run, tmp_path, kept):
  run(tmp_path / "first")
  config = tiny_config.get_config()
  config.update(init_from=str(tmp_path / "first"), init_optimizer=kept)
  setup = build.build(config)
  state = build.make_state(setup, build.start_params(setup))
  saved = checkpoint.read_params(tmp_path / "first", state.opt, "opt")
  fresh = setup.tx.init(state.params)
  assert int(state.step) == 0
  jax.tree.map(np.testing.assert_array_equal, state.opt, saved if kept else fresh)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (saved, fresh)), strict=True))


def test_a_stopped_attack_logs_how_far_it_went_as_if_it_had_not(run, tmp_path, monkeypatch):
  fields = {"train.steps": 6, "eval.every": 2, "attack": "dimra"}
  monkeypatch.setattr(train.Evaluation, "probe", lambda *_: {})
  run(tmp_path / "whole", **fields)
  lines = writer.read(tmp_path / "whole" / "metrics.jsonl")
  far = [line["distance"] for line in lines if "distance" in line]
  assert len(far) == 3 and 0 < far[0] < far[1] < far[2]
  signal = processes.stop_signal
  stop = lambda: contextlib.nullcontext(stop_after(3))
  monkeypatch.setattr(processes, "stop_signal", stop)
  with pytest.raises(SystemExit):
    run(tmp_path / "cut", **fields)
  monkeypatch.setattr(processes, "stop_signal", signal)
  run(tmp_path / "cut", **fields)
  logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
  assert logs[0] == logs[1]


def test_a_finished_run_is_not_trained_again(run, tmp_path, monkeypatch):
  run(tmp_path)
  log = (tmp_path / "metrics.jsonl").read_bytes()
  monkeypatch.setattr(train, "make_update", lambda *_: lambda *_: pytest.fail("stepped"))
  run(tmp_path)
  assert (tmp_path / "metrics.jsonl").read_bytes() == log
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_a_run_that_diverges_leaves_its_checkpoints_whole(run, tmp_path, monkeypatch):
  """The save that was under way when the loss became NaN is waited for."""
  monkeypatch.setattr(build.models, "make", lambda **_: Bad())
  overrides = {"train.steps": 12, "train.checkpoint_every": 1, "optimizer.learning_rate": 0.01}
  with pytest.raises(train.Diverged):
    run(tmp_path, **overrides)
  bad = writer.read(tmp_path / "metrics.jsonl")[-1]["step"]
  names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
  assert names == {str(bad - 2), str(bad - 1)}
