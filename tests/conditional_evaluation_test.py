"""The evaluation of a conditional model, from its plan of conditions to its files."""

import dataclasses
import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxunlearn import build, data, evals, evaluation, streams
from jaxunlearn.diffusion import sampling
from jaxunlearn.evaluation import Evaluation, Stopped
from jaxunlearn.reports import pictures
from tests import nets, pets, tiny_config, tiny_unet

METRICS = ("unlearning_accuracy", "kept_accuracy", "stationarity")
ASKED, KEPT, BATCH = 3, 7, 4
PLAN = [[0, 1], [1, 1], [2, 1], [0, 0], [1, 0], [2, 0], [0, 0], [1, 0], [2, 0], [0, 0]]


# The plan.


def plan(classes, concept, asked, n):
  setup = types.SimpleNamespace(net=types.SimpleNamespace(classes=classes), concept=concept)
  return evaluation.plan(setup, asked, n)


def test_what_is_to_be_forgotten_comes_first_then_the_kept_in_turn():
  c = plan((3,), data.Concept(0, 1), 4, 5)
  assert c.dtype == np.int32
  assert c.tolist() == [1, 1, 1, 1, 0, 2, 0, 2, 0]
  assert plan((3, 2), data.Concept(1, 1), ASKED, KEPT).tolist() == PLAN
  of_class = plan((3, 2), data.Concept(0, 2), 3, 5).tolist()
  assert of_class == [[2, 0], [2, 1], [2, 0], [0, 0], [0, 1], [1, 0], [1, 1], [0, 0]]


def test_the_plan_without_a_concept_without_samples_and_without_conditions():
  assert plan((3,), None, 4, 5).tolist() == [0, 1, 2, 0, 1]
  assert plan((3,), data.Concept(0, 0), 2, 0).tolist() == [0, 0]
  assert plan((3,), data.Concept(0, 0), 0, 2).tolist() == [1, 2]
  assert plan((1,), data.Concept(0, 0), 2, 5).tolist() == [0, 0]  # nothing else is there
  assert plan((), None, 4, 5) is None


# A run's evaluation, end to end.


def setup_of(**overrides):
  config = tiny_config.get_config()
  fields = dataclasses.asdict(tiny_unet.NET) | {"in_channels": 3, "out_channels": 3}
  config.model.update(**fields | {"classes": (3, 2)})
  config.forget.update(label="", style="ink")
  config.mesh.update(data=1, fsdp=1)
  config.eval.update(
    metrics=METRICS,
    classifier="species",
    style_classifier="looks",
    asked=ASKED,
    samples=KEPT,
    batch=BATCH,
    steps=2,
    guidance=1.5,
    keep=True,
    probe_samples=5,
  )
  config.update_from_flattened_dict(overrides)
  with pytest.MonkeyPatch.context() as patch:
    both = (pets.records(styled=True, n=24, shape=(8, 8, 3)),) * 2
    patch.setattr(data, "load", lambda **_: both)
    return build.build(config)


@pytest.fixture(scope="module")
def setup():
  return setup_of()


@pytest.fixture(autouse=True)
def small_classifiers(monkeypatch):
  pets.stand_in(monkeypatch)


def evaluate(setup, workdir, stop_at=None):
  """Runs the phase `after`; a stop is asked for at the stop_at-th moment it can be."""
  moments = iter(range(100))
  stopped = lambda: next(moments) == stop_at
  Evaluation(setup, workdir, stopped).once("after", nets.random_params(setup.net))


def files(workdir):
  return {str(p.relative_to(workdir)): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    pets.stand_in(patch)
    evaluate(setup, workdir)
  return files(workdir)


def test_it_leaves_values_pictures_and_the_samples(whole):
  pictures_ = {"samples/after.png", "samples/after_asked.png"}
  assert set(whole) == {"evals/after.json", streams.SAMPLES} | pictures_
  values = json.loads(whole["evals/after.json"])
  want = {"ua", "ar", "ira", "ira/photo", "worst_ira", "cra", "retain_grad_norm", "retain_loss"}
  assert set(values) == want
  for value in values.values():
    assert "guidance=1.5 weights=ema seed=0" in value["identity"]
  assert "asked=3 " in values["ua"]["identity"] and "kept=7 " in values["ira"]["identity"]


def read(whole):
  with np.load(io.BytesIO(whole[streams.SAMPLES])) as npz:
    return npz["image"], npz["c"]


def test_the_samples_are_those_of_the_guided_model_under_the_plan(setup, whole):
  image, c = read(whole)
  assert c.tolist() == PLAN
  params, w = jax.tree.map(jnp.asarray, nets.random_params(setup.net)), 1.5
  guided = lambda x_t, t, c: (
    (1 + w) * setup.net.apply(params, x_t, t, c) - w * setup.net.apply(params, x_t, t, None)
  )
  k_x, k_step = jax.random.split(jax.random.fold_in(jax.random.key(0), 1))  # of the second batch
  x_T, now = jax.random.normal(k_x, (BATCH, 8, 8, 3)), slice(BATCH, 2 * BATCH)
  want = sampling.ddpm(guided, setup.process, k_step, x_T, jnp.asarray(c[now]), steps=2)
  differ = np.abs(image[now].astype(int) - data.to_pixels(np.asarray(want)).astype(int))
  assert differ.max() <= 1  # of 255


def test_the_samples_are_records_for_the_streams_of_other_runs(setup, whole, tmp_path):
  (tmp_path / streams.SAMPLES).write_bytes(whole[streams.SAMPLES])
  records, index = streams.select(
    f"samples:{tmp_path}", setup.train, setup.forget, data.Concept(1, 1)
  )
  assert records.conditions.tolist() == PLAN and records.vocabulary == setup.train.vocabulary
  assert index.tolist() == list(range(ASKED, ASKED + KEPT))
  np.testing.assert_array_equal(records.image, read(whole)[0])


def test_pictures_have_a_row_a_kept_condition_and_what_was_asked_for(whole):
  image, c = read(whole)
  as_read = lambda name: np.asarray(Image.open(io.BytesIO(whole[name])))
  of = lambda *row: image[(c == row).all(axis=1)][:2]  # two of each are there
  rows = data.to_model(np.concatenate([of(0, 0), of(1, 0), of(2, 0)]))
  np.testing.assert_array_equal(as_read("samples/after.png"), pictures.grid(rows, columns=2))
  asked = pictures.grid(data.to_model(image[:ASKED]))
  np.testing.assert_array_equal(as_read("samples/after_asked.png"), asked)


@pytest.mark.parametrize("moment", [1, 2, 4])  # of three batches of samples, three metrics
def test_a_stopped_evaluation_goes_on(setup, whole, tmp_path, moment):
  with pytest.raises(Stopped):
    evaluate(setup, tmp_path, stop_at=moment)
  assert not (tmp_path / "evals" / "after.json").exists()
  assert not (tmp_path / streams.SAMPLES).exists()
  evaluate(setup, tmp_path)
  assert files(tmp_path) == whole


def test_samples_are_kept_only_where_asked_for(tmp_path):
  evaluate(setup_of(**{"eval.keep": False, "eval.metrics": ()}), tmp_path)
  assert not (tmp_path / streams.SAMPLES).exists()
  assert (tmp_path / "samples" / "after.png").exists()


def test_a_probe_is_asked_for_the_concept_or_for_all_where_there_is_none(
  setup, monkeypatch, tmp_path
):
  seen = []
  monkeypatch.setattr(evals, "metric", lambda name: lambda _, task: [seen.append(task), {}][1])

  def probe(setup):
    made = Evaluation(setup, tmp_path, lambda: False)
    made.probe(1, nets.random_params(setup.net))

  probe(setup)
  assert seen[-1].c.tolist() == [[0, 1], [1, 1], [2, 1], [0, 1], [1, 1]]
  assert seen[-1].of_concept.all() and len(seen[-1].samples) == 5
  assert not files(tmp_path)
  probe(setup_of(attack="few_shot", streams={"x": "forget"}))
  assert set(files(tmp_path)) == {"samples/probe_asked.png"}
  probe(dataclasses.replace(setup, concept=None))
  assert seen[-1].c.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]


def test_a_probe_of_an_attack_shows_the_samples_of_the_evaluation(setup, whole, tmp_path):
  config = setup.config.copy_and_resolve_references()
  config.eval.probe_metrics = ()
  probe = lambda: Evaluation(
    dataclasses.replace(setup, config=config), tmp_path, lambda: False
  ).probe(1, nets.random_params(setup.net))
  probe()
  assert not list(tmp_path.iterdir())
  config.attack = "dimra"
  probe()
  assert [path.name for path in (tmp_path / "samples").iterdir()] == ["probe_asked.png"]
  shown = np.asarray(Image.open(tmp_path / "samples" / "probe_asked.png")).astype(int)
  asked = np.asarray(Image.open(io.BytesIO(whole["samples/after_asked.png"])))
  assert np.abs(shown[:, : asked.shape[1]] - asked).max() <= 1  # the same noise


def test_references_leave_the_concept_out(tmp_path):
  one = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 2), np.int32)
  of = lambda setup: Evaluation(setup, tmp_path, lambda: False)._task(*one)
  made = {name: of(setup_of(**{"eval.reference": name})) for name in evaluation.REFERENCES}
  styles = {name: set(task.reference.style.tolist()) for name, task in made.items()}
  assert styles == {"heldout": {0}, "retain": {0}, "train": {0, 1}}
  assert all(len(task.target) == 0 for task in made.values())


# The same noise for every model.


def test_noise_depends_on_the_batch_and_the_seed_alone(setup, monkeypatch):
  seen = []
  record = lambda eps_fn, process, rng, x_T, c, **_: seen.append((x_T, rng, c))
  monkeypatch.setattr(sampling, "sample", lambda *a, **k: [record(*a, **k), np.zeros(1)][1])
  c = plan((3, 2), data.Concept(1, 1), ASKED, KEPT)
  other = setup_of(**{"eval.seed": 1})
  one, another = (lambda x_t, t, c=None: x_t), (lambda x_t, t, c=None: -x_t)
  calls = [(setup, one, 0, c), (setup, another, 0, None), (setup, one, 2, c), (other, one, 0, c)]
  for where, model, i, conditions in calls:
    evaluation.generate(where, model, i, conditions)
  noise = [np.asarray(x_T) for x_T, *_ in seen]
  keys = [tuple(jax.random.key_data(rng).tolist()) for _, rng, _ in seen]
  np.testing.assert_array_equal(noise[0], noise[1])
  assert keys[0] == keys[1] and len(set(keys)) == 3
  assert len({x.tobytes() for x in noise}) == 3
  assert seen[0][2].tolist() == PLAN[:4]
  assert seen[2][2].tolist() == PLAN[8:] + PLAN[:2]  # after the last they start again


# What does not fit together.


@pytest.mark.parametrize("classes", [(3,), (2, 3), (3, 2, 1)])
def test_a_model_of_other_conditions_than_the_datas(classes):
  with pytest.raises(ValueError, match=r"the data has \(3, 2\) classes \(and styles\); set it to"):
    setup_of(**{"model.classes": classes})


def test_an_unconditional_model_of_styled_data_has_no_concept_but_forgets_the_records():
  setup = setup_of(**{"model.classes": (), "streams": {"x": "retain"}})
  assert setup.concept is None
  assert setup.forget.sum() == 12
  assert setup.batch(0)["x"].c is None


def test_a_conditional_run_knows_its_concept(setup):
  assert setup.concept == (1, 1)
  rows = setup.host_batch(3)["x"]
  assert rows.c.shape == (16, 2) and (rows.c[:, 1] == 0).all()


@pytest.mark.parametrize(
  ("forget", "says"),
  [
    ({"forget.style": "inks"}, r"no style 'inks' .did you mean 'ink'\?.*there are: photo, ink"),
    ({"forget.style": "", "forget.label": "cow"}, "no class 'cow'.*there are: cat, dog, fox"),
    ({"forget.label": "dog"}, "forget has both label and style; give one of"),
  ],
)
def test_a_class_or_style_that_does_not_exist(forget, says):
  with pytest.raises(ValueError, match=says):
    setup_of(**forget)
