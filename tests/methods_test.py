"""The contract that every module in methods/ keeps: a new method is tested because it exists.

Each is set up as build.build does, on 24 records to keep and 5 of a class to forget, and stepped by
step.py as in a run, on a network of three leaves: a matrix, a bias and a table of embeddings.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxunlearn import build, data, methods, prompts, step, streams, train
from jaxunlearn.adapters import Trained
from jaxunlearn.diffusion import NULL, Diffusion
from jaxunlearn.mesh import sharding
from jaxunlearn.models import text_to_image
from tests import counting

PROCESS = Diffusion(T=100, beta_T=0.2)
SHAPE = (4, 4, 3)
ROWS = 16
LABEL = np.array([0, 1, 2] * 8 + [3] * 5, np.int32)
FORGET = LABEL == 3
TAKES = {
  "a": {"take": "forget", "to": "next"},
  "alt": {"take": "retain", "c": "forget", "to": "own"},
}  # any other stream: retain

RUN = {
  "seed": 0,
  "ema": 0.0,
  "ema_warmup": True,
  "init_from": "",
  "init_optimizer": False,
}

COMPILED = []  # the programs so far
jax.monitoring.register_event_duration_secs_listener(
  lambda event, *_, **__: COMPILED.append(event) if event.endswith("compile_duration") else None
)

every_method = pytest.mark.parametrize("name", methods.names())


def methods_with(what):
  found = [name for name in methods.names() if what(methods.make(name))]
  return pytest.mark.parametrize("name", found)


def dropouts(method):
  """Its fields that are the share of rows, in a step, whose condition is dropped."""
  return [name for name in ("c_dropout", "a_dropout") if hasattr(method, name)]


def apply(params, x_t, t, c=None):
  table = params["class_embedding_0"]["embedding"]
  embedding = table[jnp.full(len(x_t), NULL) if c is None else c]
  bias = params["b"] * t[:, None] / PROCESS.T + embedding + params["prefix"].mean(axis=0)
  return jnp.tanh(x_t @ matrix(params) + bias[:, None, None])


def matrix(params):
  """Under the name of a key of an attention to text, which UCE edits."""
  return params["attn2"]["to_k"]["kernel"]


def apply_bf16(params, x_t, t, c=None):
  return apply(params, x_t, t, c).astype(jnp.bfloat16)


def random_params():
  k_w, k_b, k_c = jax.random.split(jax.random.key(0), 3)
  table = 0.5 * jax.random.normal(k_c, (5, 3))
  return {
    "attn2": {"to_k": {"kernel": 0.3 * jax.random.normal(k_w, (3, 3))}},
    "text_encoder": {},
    "prefix": jnp.full((2, 3), 1 / 3),
    "b": jax.random.normal(k_b, (3,)),
    "class_embedding_0": {"embedding": table},
  }


class Words:
  """A text encoder: each token has its state."""

  end = 6
  table = np.random.default_rng(5).standard_normal((7, 3)).astype(np.float32)

  def states(self, params, ids):
    del params
    return jnp.asarray(self.table)[ids]


@dataclasses.dataclass(frozen=True)
class Net:
  apply: object
  classes: tuple[int, ...]
  book: object = None
  text = Words()

  def rows(self, c):
    return jnp.where(c == NULL, 4, c).reshape(len(c))


BOOK = text_to_image.Book(np.array([[5, 0, 6], [5, 1, 6], [5, 2, 6], [5, 3, 6], [5, 6, 6]]))
TEXT = prompts.Encoder(Net(None, (4,), BOOK), {"text_encoder": {}}, lambda: None)


def images(seed, n):
  return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


RECORDS = data.Records(
  np.arange(len(LABEL)).astype(str), images(1, len(LABEL)), LABEL, tuple("pqrs")
)


@functools.cache
def make_setup(name, apply=apply, conditional=True, micro_batches=1, **fields):
  """A run of the method, with its default fields and Adam."""
  method = methods.make(name, **fields)
  takes = {stream: TAKES.get(stream, "retain") for stream in method.streams}
  if not conditional:
    takes = {stream: streams.as_take(take).take for stream, take in takes.items()}
  concept = data.Concept(0, 3) if conditional else None
  optimizer = {"learning_rate": 1e-2}
  trained = {"steps": 4, "micro_batches": micro_batches, "gather_once": False}
  return build.Setup(
    config=ConfigDict(
      RUN | {"method": {"name": name}} | {"optimizer": optimizer, "train": trained}
    ),
    mesh=sharding.make_mesh(1),
    process=PROCESS,
    net=Net(apply, (4,), BOOK) if conditional else Net(apply, ()),
    method=method,
    tx=optax.adam(**optimizer),
    train=RECORDS,
    heldout=RECORDS,
    forget=FORGET,
    concept=concept,
    streams=streams.make(RECORDS, FORGET, takes, ROWS, 0, concept, conditional),
  )


@functools.cache
def started(name):
  """The state of step 0, on the host: a step gives its state away."""
  return jax.device_get(build.make_state(make_setup(name), random_params()))


@functools.partial(jax.jit, static_argnums=0)
def draw(method, batch, rng, extras, step):
  return method.draw(PROCESS, batch, rng, extras, step)


@functools.cache
def drawn(name, step=0):
  setup = make_setup(name)
  return draw(setup.method, setup.host_batch(0), jax.random.key(3), started(name).extras, step)


def grads_of(name, step_number=0, **kind):
  """The K gradients and the metrics of `drawn`, as a step takes them."""
  state = started(name)
  gradients = step.Gradients(step.program(make_setup(name, **kind)))
  return gradients(state.params, drawn(name, step_number), state.extras)


def run(name, steps):
  """The parameters after each step, and the metrics of each."""
  setup = make_setup(name)
  state = build.make_state(setup, random_params())
  update = step.make_update(setup, state)
  params, metrics = [], []
  for i in range(steps):
    state, logged = update(state, setup.batch(i))
    params.append(jax.device_get(state.params))
    metrics.append(jax.device_get(logged))
  return params, metrics


def assert_trees_close(got, want, rtol=1e-5):
  """Leaf by leaf, relative to the leaf's largest entry."""
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * np.max(np.abs(w)))


def assert_trees_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


@every_method
def test_a_run_is_finite_repeats_and_compiles_no_more_after_two_steps(name):
  params, metrics = run(name, 2)
  for leaf in jax.tree.leaves((params, metrics)):
    assert np.all(np.isfinite(leaf))
  assert all(np.shape(v) == () for v in jax.tree.leaves(metrics))
  compiled = len(COMPILED)
  more_params, more_metrics = run(name, 4)
  assert_trees_equal((more_params[:2], more_metrics[:2]), (params, metrics))
  assert 0 < compiled == len(COMPILED)


@every_method
def test_what_a_method_leaves_out_of_its_steps_stays_and_all_else_moves(name):
  state, method = started(name), methods.make(name)
  rng = np.random.default_rng(0)
  random = lambda _: jax.tree.map(lambda p: rng.standard_normal(np.shape(p)), state.params)
  direction, _ = method.combine(tuple(map(random, method.terms)), state.extras)
  params = run(name, 2)[0][-1]
  leaves = map(jax.tree.leaves, (direction, state.params, params))
  for step_of_leaf, before, after in zip(*leaves, strict=True):
    left_out, moved = step_of_leaf == 0, before != after
    assert not np.any(moved & left_out)
    assert np.any(moved) or np.all(left_out)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(direction))


@every_method
def test_a_step_follows_what_combine_gives_and_the_slope_of_the_penalty(name):
  setup = make_setup(name)
  method, state = setup.method, build.make_state(setup, random_params())
  update = step.make_update(setup, state)
  state, _ = update(state, setup.batch(0))
  step_0, params, _, opt, extras, _ = jax.device_get(state)
  state, metrics = update(state, setup.batch(1))
  draws = draw(
    method, setup.host_batch(1), jax.random.fold_in(jax.random.key(0), 1), extras, step_0
  )
  grads, _ = step.Gradients(step.program(setup))(params, draws, extras)
  slope = jax.grad(lambda p: jnp.float32(method.penalty(p, extras)))(params)
  direction = jax.tree.map(jnp.add, method.combine(grads, extras)[0], slope)
  np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(direction), rtol=1e-5)
  moved = optax.apply_updates(params, setup.tx.update(direction, opt, params)[0])
  want, _ = method.settle(moved, extras, jnp.asarray(step_0))
  assert_trees_close(state.params, want)


@methods_with(lambda method: type(method).gradients is methods.Objective.gradients)
def test_gradients_are_those_of_each_term_and_zero_where_not_needed(name):
  method, (_, params, _, _, extras, _) = methods.make(name), started(name)

  @jax.jit
  def apart(params, extras, draws):
    bound = methods.bind(extras, apply, params)
    losses = lambda p: method.losses(functools.partial(apply, p), PROCESS, draws, bound)[0]
    return losses(params), jax.jacrev(losses)(params)

  for number in (0, 1):
    grads, metrics = grads_of(name, number)
    losses, jacobians = apart(params, extras, drawn(name, number))
    for term, got, loss, grad in zip(method.terms, grads, losses, jacobians, strict=True):
      assert_trees_close(got, grad)
      np.testing.assert_allclose(metrics[f"loss_{term}"], loss, rtol=1e-6)


@methods_with(lambda method: not method.whole_batch)
@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_average_to_the_gradients_of_the_whole(name, count):
  for number in (0, 1):
    parts, _ = grads_of(name, number, micro_batches=count)
    assert_trees_close(parts, grads_of(name, number)[0])


@every_method
def test_draws_repeat_with_the_key_and_lead_with_the_batch_axis(name):
  setup, extras = make_setup(name), started(name).extras
  draw_with = lambda seed: draw(setup.method, setup.host_batch(0), jax.random.key(seed), extras, 0)
  first, again, other = map(draw_with, (3, 3, 4))
  assert_trees_equal(first, again)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(first)} == {ROWS}
  differ = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, other)
  assert differ["t"] and differ["eps"]


@every_method
def test_what_a_method_reads_of_its_rows_it_says(name):
  """The draws follow the record numbers and the condition to map to only where it says so."""
  setup = make_setup(name)
  batch, extras = jax.tree.map(jnp.asarray, (setup.host_batch(0), started(name).extras))

  def draws(fields):
    changed = {k: rows._replace(**fields) if k == "a" else rows for k, rows in batch.items()}
    return setup.method.draw(PROCESS, changed, jax.random.key(0), extras, 0)

  rows = np.zeros(ROWS, np.int32)
  program = jax.make_jaxpr(draws)({"index": rows, "to": rows}).jaxpr
  read = [*program.outvars, *(var for line in program.eqns for var in line.invars)]
  given = zip(("index", "to"), program.invars, strict=True)
  found = {field for field, var in given if any(var is other for other in read)}
  allowed = {*setup.method.needs, *(["index"] if setup.method.numbered else [])}
  assert found <= allowed


@every_method
def test_no_random_key_is_used_twice(name, monkeypatch):
  """Nor one that was split: fold_in(key, 1) is split(key)[1]."""
  used = []

  def spied(function):
    def spy(key, *args, **kwargs):
      used.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
      return function(key, *args, **kwargs)

    return spy

  for function in ("split", "normal", "uniform", "bernoulli", "randint"):
    monkeypatch.setattr(jax.random, function, spied(getattr(jax.random, function)))
  setup = make_setup(name)
  with jax.disable_jit():
    extras = build.make_state(setup, random_params()).extras
    setup.method.draw(PROCESS, setup.batch(0), jax.random.key(3), extras, 0)
  assert used and len(used) == len(set(used))


@every_method
def test_declared_passes_are_those_that_run_and_that_are_reported(name):
  method, model = methods.make(name), counting.Model(apply)
  for number in (0, 1):
    grads, metrics = grads_of(name, number, apply=model)
    rows = ROWS * (number + 1)
    assert model.rows() == (rows * method.forwards, rows * method.backwards)
    assert metrics["passes"] == method.forwards + 2 * method.backwards
    assert_trees_close(grads, grads_of(name, number)[0])


@every_method
def test_losses_stay_float32_under_a_bf16_network(name):
  grads, metrics = grads_of(name, apply=apply_bf16)
  exact, exact_metrics = grads_of(name)
  for key in metrics:
    assert metrics[key].dtype == jnp.float32
    if key.startswith("loss_"):
      # Rounding the network's output to 8 bits moves a loss by no more than that.
      np.testing.assert_allclose(metrics[key], exact_metrics[key], rtol=2e-2)
  for got, want in zip(grads, exact, strict=True):
    assert_trees_close(got, want, rtol=5e-2)


def told(streams, columns=0):
  """Rows of new images, each with a condition of its own (in columns) and another to map it to."""
  names = sorted({"x", "a", *streams})
  c = np.arange(len(names) * ROWS, dtype=np.int32)
  image = data.to_model(images(2, len(c)))
  c = c[:, None] + 100 * np.arange(columns, dtype=np.int32) if columns else c
  every = methods.Rows(image, c, np.zeros(len(c), np.int32), c + 1000)
  return {name: every.at(slice(i * ROWS, (i + 1) * ROWS)) for i, name in enumerate(names)}


def passes(name, rows, number, **fields):
  """For each pass of a step through a network: the conditions of its images, and those it is told.

  The images are noised without noise. What is none of the rows' stands for those of `a` in order.
  """
  method = methods.make(name, **fields)
  params, extras = started(name).params, started(name).extras
  real = make_setup(name).host_batch(0)
  batch = {s: rows[s]._replace(index=real[s].index) for s in method.streams}

  @jax.jit
  def watch(params, extras, draws):
    seen = []

    def network(params, x_t, t, c=None):
      seen.append((x_t / PROCESS.gamma(t), c))
      return matrix(params)[0, 0] * x_t

    method.gradients(network, params, PROCESS, draws, extras)
    return seen

  draws = draw(method, batch, jax.random.key(3), extras, number)
  noiseless = {k: 0 * v if k.startswith("eps") else v for k, v in draws.items()}
  image, c = (np.concatenate([getattr(r, k) for r in rows.values()]) for k in ("image", "c"))

  def own(shown):
    distance = np.abs(shown[:, None] - image).max(axis=(2, 3, 4))
    fresh = np.min(distance, axis=1) > 1e-3
    known = c[np.argmin(distance, axis=1)]
    return np.where(fresh.reshape(-1, *[1] * (c.ndim - 1)), rows["a"].c, known)

  return [
    (own(np.asarray(shown)), np.asarray(told)) for shown, told in watch(params, extras, noiseless)
  ]


@every_method
@pytest.mark.parametrize("columns", [0, 2])
def test_each_row_of_a_conditional_model_gets_its_own_condition(name, columns):
  """Or in a pass for a target what its own is mapped to, or none."""
  rows = told(methods.make(name).streams, columns)
  fields = dict.fromkeys(dropouts(methods.make(name)), 0.0)
  for number in (0, 1):
    seen = passes(name, rows, number, **fields)
    assert any(np.array_equal(c, own) for own, c in seen)
    for own, c in seen:
      assert any(np.array_equal(c, allowed) for allowed in (own, own + 1000, 0 * own + NULL))


@methods_with(dropouts)
def test_conditions_are_dropped_of_the_rows_that_a_field_names_alone(name):
  """c_dropout those of what is kept, a_dropout those of `a`, and what they are mapped to."""
  rows, fields = told(methods.make(name).streams), dropouts(methods.make(name))
  kept = rows["x"].c
  for field in fields:
    dropped = kept if field == "c_dropout" else rows["a"].c
    for number in (0, 1):
      for own, c in passes(name, rows, number, **dict.fromkeys(fields, 0.0) | {field: 1.0}):
        np.testing.assert_array_equal(c == NULL, np.isin(own, dropped))


CONDITIONAL = {  # what each says it needs; the others need nothing
  "concept_ablation": ("c", "own"),
  "dimum": ("c", "concept"),
  "dimum_attacks": ("c", "concept"),
  "dimum_meta": ("c", "concept"),
  "dimum_projected": ("c", "concept"),
  "dimum_sharpness": ("c", "concept"),
  "embedding_copy": ("c", "to"),
  "embedding_inversion": ("c", "to"),
  "erasediff_bilevel": ("c", "to"),
  "erasediff_bome": ("c", "to"),
  "esd": ("c", "concept"),
  "salun": ("c", "to"),
  "selective_amnesia": ("c", "concept"),
  "token_inversion": ("c", "concept", "token"),
  "uce": ("c", "to", "text"),
  "undo": ("c", "concept"),
  "unlearn_diff_attack": ("c", "text"),
}


@every_method
def test_what_a_run_lacks_of_what_a_method_needs_is_one_line(name):
  """A need is lifted by giving it, one after the other, until the run is accepted."""
  setup = make_setup(name, conditional=False)
  assert setup.method.needs == CONDITIONAL.get(name, ())
  given = {
    "c": lambda s: dataclasses.replace(s, net=Net(apply, (4,))),
    "concept": lambda s: dataclasses.replace(s, concept=make_setup(name).concept),
    "to": lambda s: dataclasses.replace(s, streams=make_setup(name).streams),
    "token": lambda s: dataclasses.replace(s, trained=Trained("token")),
    "own": lambda s: dataclasses.replace(s, streams=make_setup(name).streams),
    "text": lambda s: dataclasses.replace(s, net=make_setup(name).net),
  }
  assert given.keys() == methods.NEEDS.keys()
  for word in setup.method.needs:
    with pytest.raises(ValueError, match=rf"^method {name} needs ") as error:
      build.check_needs(setup)
    assert methods.NEEDS[word] in str(error.value) and "\n" not in str(error.value)
    setup = given[word](setup)
  build.check_needs(setup)


@methods_with(lambda method: not method.needs)
def test_an_unconditional_model_is_moved_by_every_other_method(name):
  setup = make_setup(name, conditional=False)
  state = build.make_state(setup, random_params())
  _, metrics = step.make_update(setup, state)(state, setup.batch(0))
  assert not train.is_idle(setup.method, jax.tree.map(float, metrics))


@every_method
def test_a_run_that_forgets_nothing_is_told_from_one_that_does(name):
  metrics = jax.tree.map(float, run(name, 2)[1])
  method = methods.make(name)
  assert not all(train.is_idle(method, one) for one in metrics)
  still = [one | {"grad_norm": 0.0} for one in metrics]
  unmoved = [one | {f"loss_{term}": 0.0 for term in method.terms if term != "x"} for one in metrics]
  assert all(train.is_idle(method, one) for one in still)
  assert all(train.is_idle(method, one) for one in unmoved) or method.terms == ("x",)


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
    if not isinstance(field.default, bool | str | tuple):
      bad = -1 if isinstance(field.default, int) else float("nan")
      with pytest.raises(ValueError, match=rf"^{field.name} is {bad}; use [^\n]+$"):
        methods.make(name, **{field.name: bad})


@every_method
def test_a_method_says_how_it_deviates_from_its_paper(name):
  assert re.search(r"^Deviations\b.*:", methods.CHOICES.module(name).__doc__, re.MULTILINE)


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
