"""An evaluation that is stopped goes on where it was, and ends as if it had not been."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxunlearn import build, evals, evaluation
from jaxunlearn.evaluation import Evaluation, Stopped
from tests import nets, tiny_config

METRICS = ("target_rate", "copy_score")


@pytest.fixture(scope="module")
def setup():
  config = tiny_config.get_config()
  config.mesh.update(data=1, fsdp=1)
  config.eval.update(
    metrics=METRICS, samples=10, batch=4, steps=2, inject_t=2, inject_n=2, probe_samples=3
  )
  return build.build(config)


def evaluate(setup, workdir, stop_at=None):
  """Runs the phase `before`; a stop is asked for at the stop_at-th moment it can be."""
  asked = iter(range(100))
  stopped = lambda: next(asked) == stop_at
  Evaluation(setup, workdir, stopped).once("before", nets.random_params(setup.net))


def files(workdir):
  return {str(p.relative_to(workdir)): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  evaluate(setup, workdir)
  return files(workdir)


def count(monkeypatch, module, name):
  calls, real = [], getattr(module, name)
  monkeypatch.setattr(module, name, lambda *a: [calls.append(a[2]), real(*a)][1])
  return calls


def test_it_leaves_values_and_pictures_and_no_samples(whole):
  assert set(whole) == {
    "evals/before.json",
    *(f"samples/{name}.png" for name in ("before", "before_nearest", "target")),
  }
  assert {"tshirt_rate", "copy_score"} == set(json.loads(whole["evals/before.json"]))


@pytest.mark.parametrize("moment", range(5))  # three batches of samples, two metrics
def test_a_stopped_evaluation_goes_on(setup, whole, tmp_path, monkeypatch, moment):
  with pytest.raises(Stopped):
    evaluate(setup, tmp_path, stop_at=moment)
  assert not (tmp_path / "evals" / "before.json").exists()
  made = count(monkeypatch, evaluation, "generate")
  evaluate(setup, tmp_path)
  assert made == list(range(moment, 3))
  assert files(tmp_path) == whole


def test_a_batch_of_samples_that_was_half_written_is_made_again(setup, whole, tmp_path):
  with pytest.raises(Stopped):
    evaluate(setup, tmp_path, stop_at=2)
  with (tmp_path / "samples" / "before.f32").open("ab") as file:
    file.write(np.ones(100, np.float32).tobytes())
  evaluate(setup, tmp_path)
  assert files(tmp_path) == whole


def test_a_probe_has_the_first_samples_of_the_evaluation(setup, tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(evals, "metric", lambda name: lambda _, task: [seen.append(task), {}][1])
  params = nets.random_params(setup.net)
  task = Evaluation.__new__(Evaluation)
  task.__dict__.update(_setup=setup, _workdir=tmp_path, _stopped=lambda: False)
  task.probe(1, params)
  eps_fn = jax.tree_util.Partial(setup.net.apply, params)
  np.testing.assert_array_equal(seen[0].samples, evaluation.generate(setup, eps_fn, 0)[:3])


@pytest.mark.parametrize(
  ("field", "bad"),
  [("reference", "test"), ("metrics", ("fidd",)), ("sampler", "plsm"), ("steps", 1001)],
)
def test_bad_options_are_refused_before_any_work(setup, tmp_path, field, bad):
  config = setup.config.copy_and_resolve_references()
  config.eval[field] = bad
  with pytest.raises(ValueError, match=r"^(no (reference set|metric|sampler)|steps 1001) "):
    Evaluation(dataclasses.replace(setup, config=config), tmp_path, lambda: False)


def test_a_metric_sees_the_records_of_the_run_and_the_model_before_it(setup, tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(evals, "metric", lambda name: lambda _, task: [seen.append(task), {}][1])
  params = nets.random_params(setup.net)
  start = lambda: jax.tree.map(lambda leaf: 2 * leaf, params)
  Evaluation(setup, tmp_path, lambda: False).once("after", params, {}, lambda: (start(), {}))
  task = seen[0]
  assert not set(task.split.kept.ids) & set(task.split.deleted.ids)
  assert len(task.split.kept) + len(task.split.deleted) == len(setup.train)
  assert task.split.like_deleted is task.split.like_kept is setup.heldout
  jax.tree.map(np.testing.assert_array_equal, task.before().args[0], start())
