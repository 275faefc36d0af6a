"""The library on networks not ours: its page as printed, its loop beside ours, its errors."""

import contextlib
import dataclasses
import functools
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn
from jaxunlearn import build, methods
from jaxunlearn.methods import Rows
from tests import methods_test as ours
from tests import tiny_pipeline, toys

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text()
KEY = jax.random.key(0)
prepared = [
  method
  for method in map(methods.make, methods.names())
  if type(method).prepare is not methods.Objective.prepare
  or type(method).start is not methods.Objective.start
]


def test_the_page_runs_as_printed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  tiny_pipeline.write(tmp_path / "stable-diffusion")
  names = {}
  blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
  for block in blocks:
    exec(compile(block, "docs/library.md", "exec"), names)
  assert len(blocks) == 12
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), names["params"], names["trained"])
  assert 0 < max(jax.tree.leaves(moved)) < 0.1
  assert names["pixels"].shape == (4, 8, 8, 1) and names["pixels"].dtype == np.uint8
  assert names["pictures"].shape == (2, 16, 16, 3) and np.isfinite(names["pictures"]).all()
  assert names["values"].keys() == {"copy_score", "nll_bpd"}


def test_every_public_name_stands_on_the_page_and_none_loads_jax_before_it_is_used():
  for name in jaxunlearn.__all__:
    assert getattr(jaxunlearn, name) is not None and f"`{name}" in PAGE
  assert set(jaxunlearn.__all__) <= set(dir(jaxunlearn))
  with pytest.raises(AttributeError, match="'jaxunlearn' has no attribute 'sampel'"):
    _ = jaxunlearn.sampel
  code = "import jaxunlearn, sys; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == "[]\n", done.stderr


# Terms that are left out, a penalty, record numbers.
KINDS = ("siss", "selective_amnesia", "retrack")


@pytest.mark.parametrize("name", KINDS)
def test_the_callers_loop_takes_the_steps_of_ours(name):
  setup, step = ours.make_setup(name), step_of(name)
  state = build.make_state(setup, ours.random_params())
  params, extras = state.params, state.extras
  opt = setup.tx.init(params)

  @jax.jit
  def update(params, extras, opt, batch, i):
    direction, metrics = step.direction(params, extras, batch, KEY, i)
    updates, opt = setup.tx.update(direction, opt, params)
    params, extras = step.settle(optax.apply_updates(params, updates), extras, i)
    return params, extras, opt, metrics

  for i in range(2):
    params, extras, opt, metrics = update(params, extras, opt, setup.host_batch(i), i)
  want, logged = ours.run(name, 2)
  ours.assert_trees_close(params, want[-1], rtol=1e-4)
  for key in metrics.keys() - {"passes"}:
    np.testing.assert_allclose(metrics[key], logged[-1][key], rtol=1e-4)


@pytest.mark.parametrize("method", prepared, ids=lambda method: type(method).__module__[19:])
def test_a_start_from_arrays_is_of_the_kind_that_a_run_has(method):
  name = type(method).__module__.rpartition(".")[2]
  rows = Rows(floats(8), c=np.full(8, 3, np.int32), to=np.zeros(8, np.int32))
  fields = {"neighbours": 2} if name == "retrack" else {}
  step = jaxunlearn.Step(dataclasses.replace(method, **fields), ours.apply, ours.PROCESS)
  streams = dict.fromkeys(method.streams, rows)
  params, extras = step.start(ours.random_params(), streams, KEY, ours.TEXT)
  assert jax.tree.structure(params) == jax.tree.structure(ours.random_params())
  assert jax.tree.structure(extras) == jax.tree.structure(ours.started(name).extras)
  numbered = rows._replace(index=np.arange(8, dtype=np.int32))
  batch = dict.fromkeys(method.streams, numbered)
  direction, _ = jax.eval_shape(step.direction, params, extras, batch, KEY, 1)
  assert jax.tree.map(jnp.shape, direction) == jax.tree.map(jnp.shape, params)


def test_the_three_parts_of_a_direction_serve_micro_batches():
  step, params, batch = step_of("siss"), ours.random_params(), {"x": floats(8), "a": floats(8, 1)}
  want, _ = jax.jit(step.direction)(params, {}, batch, KEY, 3)

  @jax.jit
  def by_halves(params, batch):
    draws = step.draw({}, batch, KEY, 3)
    halves = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 4], draws) for i in (0, 4)]
    grads = [step.gradients(params, {}, half)[0] for half in halves]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    return step.combine(params, {}, mean)[0]

  ours.assert_trees_close(by_halves(params, batch), want)


def test_guidance_is_bound_and_samples_repeat_with_the_key():
  params = toys.linear_params((2, 2, 1), 2)
  plain, guided = (jaxunlearn.eps_fn(toys.linear, params, w) for w in (0.0, 2.0))
  c = np.array([0, 1])
  made = lambda eps_fn: jaxunlearn.sample(eps_fn, ours.PROCESS, KEY, (2, 2, 2, 1), c, steps=4)
  np.testing.assert_array_equal(made(plain), made(plain))
  assert np.abs(made(guided) - made(plain)).max() > 1e-2
  closure = lambda x_t, t, c=None: toys.linear(params, x_t, t, c)
  np.testing.assert_allclose(made(closure), made(plain), rtol=1e-5, atol=1e-5)


def test_metrics_are_those_of_evals_and_say_how_they_were_measured():
  """The exact predictor of a point mass restores it, and no sample of it is anything else."""
  point = floats(1)
  eps_fn = toys.mixture_eps_fn(ours.PROCESS, point, 0.0, np.ones(1))
  given = {"target": point, "target_name": "mine", "target_radius": 1.0, "inject_t": 5}
  how = {"samples": 70, "steps": 4, "inject_n": 2, "seed": 3}
  names = ("target_rate", "copy_score")
  values = jaxunlearn.measure(
    names, eps_fn, ours.PROCESS, reference=jaxunlearn.to_pixels(floats(4)), **given, **how
  )
  assert values["mine_rate"].value == 1 and values["copy_score"].value == pytest.approx(1, abs=1e-4)
  facts = dict(fact.split("=") for fact in values["mine_rate"].identity.split())
  want = {"sampler": "ddim", "steps": "4", "n": "70", "guidance": "none", "seed": "3"}
  assert want.items() <= facts.items()


def test_guidance_stands_in_the_identity_of_a_conditional_model():
  records = jaxunlearn.Records(
    np.array(["0", "1"]), jaxunlearn.to_pixels(floats(2)), np.array([0, 1], np.int32), ("p", "q")
  )
  eps_fn = jaxunlearn.eps_fn(ours.apply, ours.random_params(), 1.5)
  values = jaxunlearn.measure(
    ("stationarity",), eps_fn, ours.PROCESS, reference=records, c=np.array([0, 1]), samples=3
  )
  assert "guidance=1.5" in values["retain_grad_norm"].identity
  assert values["retain_grad_norm"].value > 0


@contextlib.contextmanager
def refused(what):
  with pytest.raises(ValueError) as caught:
    yield
  assert re.fullmatch(rf"[^\n]*{what}[^\n]*", str(caught.value))


def test_bad_input_is_refused_in_one_line(tmp_path):
  step, params = step_of("siss"), ours.random_params()
  direction = lambda step, **batch: jax.eval_shape(step.direction, params, {}, batch, KEY)
  x, c = floats(2), np.zeros(2, np.int32)
  with refused("method siss reads stream 'a' and the batch has x; add"):
    direction(step, x=x)
  with refused(r"differ: x \(2, 4, 4, 3\), a \(3, 4, 4, 3\); give"):
    direction(step, x=x, a=floats(3))
  with refused("stream 'a' are uint8 .* as jaxunlearn.to_model"):
    direction(step, x=x, a=jaxunlearn.to_pixels(x))
  with refused("give Rows.* of all, or none"):
    direction(step, x=Rows(x, c), a=x)
  with refused(r"apply gives an array \(2,\) for images"):
    direction(dataclasses.replace(step, apply=lambda p, x, t, c: x.mean((1, 2, 3))), x=x, a=x)
  with refused("apply gives a tuple for images"):
    direction(dataclasses.replace(step, apply=lambda p, x, t, c: (x, {})), x=x, a=x)
  with refused("method salun needs c and to of stream 'a'; give Rows"):
    direction(step_of("salun"), x=Rows(x, c), a=x)
  with refused("method retrack needs index of stream 'a'; give Rows"):
    direction(step_of("retrack"), x=x, a=x)
  with refused("method selective_amnesia reads the whole stream '\\w+' before .* start"):
    step_of("selective_amnesia").start(params)
  with refused("measure has no field 'inject_steps'.*inject_n"):
    measured(inject_steps=2)
  with refused("samples is 0; use at least 1"):
    measured(samples=0)
  with refused("make it by jaxunlearn.eps_fn"):
    measured("stationarity", samples=1, steps=1)
  with refused("net is a Net; .* networks of jaxunlearn.models"):
    jaxunlearn.save_pretrained(tmp_path, ours.Net(ours.apply, ()), params, ours.PROCESS)
  with refused("is a text-to-image model; take it whole, by load_pipeline"):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    jaxunlearn.load_pretrained(tmp_path)
  (tmp_path / "checkpoints").mkdir()
  with refused("is a run; export it first: python -m jaxunlearn.export"):
    jaxunlearn.load_pretrained(tmp_path)


def measured(*metrics, **fields):
  eps_fn = lambda x_t, t, c=None: x_t
  jaxunlearn.measure(metrics, eps_fn, ours.PROCESS, reference=floats(2), **fields)


@functools.cache
def step_of(name):
  return jaxunlearn.Step(methods.make(name), ours.apply, ours.PROCESS)


def floats(n, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (n, *ours.SHAPE)).astype(np.float32)
