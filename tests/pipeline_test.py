"""Pipelines: finished runs are skipped, processes share the runs, the table is the runs'."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxunlearn import build, checkpoint, fields, pipeline, train
from jaxunlearn.mesh import sharding
from tests import tiny_config

RATES = {"a0": 0.1, "a1": 0.3, "b0": 0.0, "b1": 0.0}


def value(v):
  return {"value": v, "ci95": None, "identity": "extractor=none"}


@pytest.fixture
def launched(monkeypatch):
  """The names of the runs that were started, in order; each leaves the results it should."""
  names = []

  def run(config, workdir):
    names.append(workdir.name)
    workdir.mkdir(parents=True, exist_ok=True)
    if workdir.name == "b1":
      raise train.Diverged("loss_x is nan at step 2")
    results = {"after": {"rate": value(RATES[workdir.name]), "nll": value("inf")}}
    (workdir / "results.json").write_text(json.dumps(results))

  monkeypatch.setattr(train, "run", run)
  monkeypatch.setattr(fields, "check", lambda config: None)  # these have a few of the fields
  return names


def config_of(tmp_path):
  runs = {name: {"train": {"steps": 5}, "init_from": ""} for name in RATES}
  config = ConfigDict({"runs": runs, "out": str(tmp_path / "out" / "table")})
  config.rows = (("A", ("a0", "a1"), ("1%",)), ("B", ("b0", "b1"), ("-",)))
  config.columns = (("rate", "rate"), ("nll", "NLL"))
  config.published = ("rate",)
  return config


def test_no_attack_begins_when_the_time_is_over(tmp_path, launched, monkeypatch, capsys):
  """The models themselves are measured all the same; a later launch makes the attacks."""
  config = config_of(tmp_path)
  config.rows = (("A", ("a0",), ("1%",)),)
  run = {"train": {"steps": 5}, "init_from": ""}
  config.runs = ConfigDict(dict.fromkeys(("a0", "a0@one", "a0@two"), run), sort_keys=False)
  monkeypatch.setitem(RATES, "a0@one", 0.0)
  monkeypatch.setitem(RATES, "a0@two", 0.0)
  clock = iter([0.0, 59.0, *[61.0] * 9])  # the start, before one, before two, ...
  monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
  pipeline.run(config, tmp_path / "runs", minutes=1.0)
  assert launched == ["a0", "a0@one"]
  assert "1 attacks were not made, the first is a0@two" in capsys.readouterr().out
  monkeypatch.setattr(pipeline.time, "monotonic", lambda: 0.0)
  pipeline.run(config, tmp_path / "runs", minutes=1.0)
  assert launched == ["a0", "a0@one", "a0@two"]


def test_the_table_has_means_intervals_divergence_and_the_published_numbers(tmp_path, launched):
  results = pipeline.run(config_of(tmp_path), tmp_path / "runs")
  assert launched == list(RATES)
  a, b = results["A"], results["B"]
  assert a["rate"]["value"] == pytest.approx(0.2) and a["rate"]["runs"] == [0.1, 0.3]
  # Student's t of two values: half-width 12.706 * sd / sqrt(2), sd = 0.1414
  assert a["rate"]["ci95"][1] - 0.2 == pytest.approx(12.706 * 0.1, rel=1e-3)
  assert a["nll"]["value"] == "inf" and a["nll"]["ci95"] is None
  assert b["runs"] == 1 and b["diverged"] == ["loss_x is nan at step 2"]
  written = json.loads((tmp_path / "out" / "table.json").read_text())
  assert written == json.loads(json.dumps(results))
  lines = (tmp_path / "out" / "table.md").read_text().splitlines()
  assert lines[0] == "|  | steps | rate | NLL | paper: rate |"
  assert lines[2] == "| A | 5 | 0.2 ± 1.3 | inf | 1% |"
  assert lines[3] == "| B | 5 | 0 (1 diverged) | inf | - |"


def test_a_bad_field_of_the_last_run_is_refused_before_the_first(tmp_path, monkeypatch):
  monkeypatch.setattr(train, "run", lambda *_: 1 / 0)
  config = config_of(tmp_path)
  config.runs = {"a0": tiny_config.get_config(), "b0": tiny_config.get_config()}
  config.runs.b0.optimizer.clip = 0.0
  with pytest.raises(
    ValueError, match=r"^run b0: config.optimizer.clip is 0; use more than 0, or None$"
  ):
    pipeline.run(config, tmp_path / "runs")
  assert not (tmp_path / "runs").exists()


def test_a_second_launch_skips_what_is_finished(tmp_path, launched):
  config = config_of(tmp_path)
  first = pipeline.run(config, tmp_path / "runs")
  launched.clear()
  assert pipeline.run(config, tmp_path / "runs") == first
  assert launched == []


def at_work(folder):
  """Another launch, alone or of a pipeline, in the directory of a run."""
  folder.mkdir(parents=True)
  return pipeline.only_here(folder / pipeline.LOCK)


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path, launched, capsys):
  with at_work(tmp_path / "runs" / "a1"):
    assert pipeline.run(config_of(tmp_path), tmp_path / "runs") == {}
  assert launched == ["a0", "b0", "b1"]
  assert "1 run is still at work in another launch, the first is a1" in capsys.readouterr().out
  assert not (tmp_path / "out").exists()


def chain(tmp_path):
  """a0, then a1 from a0, then b0 from a1."""
  config = config_of(tmp_path)
  for i, name in enumerate(("a0", "a1", "b0")):
    config.runs[name].init_from = "" if i == 0 else f"run:{('a0', 'a1')[i - 1]}"
  del config.runs["b1"]
  config.rows = (("A", ("a0", "a1"), ("1%",)), ("B", ("b0",), ("-",)))
  return config


def test_a_run_starts_from_the_run_before_it(tmp_path, launched, monkeypatch):
  origins = {}
  run = train.run
  record = lambda config, workdir: (
    [origins.update({workdir.name: config.init_from})] and run(config, workdir)
  )
  monkeypatch.setattr(train, "run", record)
  pipeline.run(chain(tmp_path), tmp_path / "runs")
  runs = tmp_path / "runs"
  assert origins == {"a0": "", "a1": str(runs / "a0"), "b0": str(runs / "a1")}


def test_what_starts_from_a_run_that_another_process_holds_waits_for_it(
  tmp_path, launched, monkeypatch, capsys
):
  looks = []

  def other_launch(seconds):
    """At its second look the run is finished."""
    assert launched == [] and seconds == pipeline.POLL
    looks.append(seconds)
    if len(looks) == 2:
      train.run(None, tmp_path / "runs" / "a0")

  monkeypatch.setattr(pipeline.time, "sleep", other_launch)
  with at_work(tmp_path / "runs" / "a0"):
    results = pipeline.run(chain(tmp_path), tmp_path / "runs")
  assert len(looks) == 2 and launched == ["a0", "a1", "b0"] and results["B"]["runs"] == 1
  said = capsys.readouterr().out
  assert said.count("a1 starts from a run that another launch is at: waiting for it\n") == 1


def test_nothing_waits_when_the_time_is_over(tmp_path, launched, monkeypatch):
  clock = iter([0.0, *[61.0] * 9])
  monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(clock))
  with at_work(tmp_path / "runs" / "a0"):
    assert pipeline.run(chain(tmp_path), tmp_path / "runs", minutes=1.0) == {}
  assert launched == []


def test_what_starts_from_a_diverged_run_is_diverged(tmp_path, launched):
  config = chain(tmp_path)
  folder = tmp_path / "runs" / "a0"
  folder.mkdir(parents=True)
  (folder / "diverged.json").write_text('{"diverged": "loss_x is nan"}')
  results = pipeline.run(config, tmp_path / "runs")
  assert launched == []
  assert "a0, which it starts from, diverged" in results["A"]["diverged"][1]
  assert "a1, which it starts from, diverged" in results["B"]["diverged"][0]


def test_a_sequence_goes_on_from_the_parameters_and_without_the_records_of_before(tmp_path):
  config = ConfigDict({"runs": {}, "columns": (), "published": (), "out": str(tmp_path / "table")})
  config.rows = (("both", ("first", "second"), ()),)
  for name, steps, ids, earlier in (
    ("first", 2, ("mnist/00000",), ()),
    ("second", 0, ("mnist/00001",), ("mnist/00000",)),
  ):
    run = tiny_config.get_config("siss")
    run.mesh.update(data=1, fsdp=1)
    run.train.steps = steps
    run.forget = {"ids": ids, "file": "", "label": "", "earlier": earlier}
    run.eval.update(after=True, metrics=("target_rate",), samples=2, batch=2, steps=1)
    run.init_from = "run:first" if earlier else ""
    config.runs[name] = run
  assert pipeline.run(config, tmp_path / "runs")["both"]["runs"] == 2

  setup = build.build(pipeline._placed(config.runs.second, tmp_path / "runs"))
  assert "mnist/00000" not in setup.train.ids
  assert "mnist/00000" in build.build(config.runs.first).train.ids
  target = sharding.shaped(setup.mesh, jax.eval_shape(setup.net.init, jax.random.key(0)))
  first, second = (
    checkpoint.read_params(tmp_path / "runs" / name, target) for name in ("first", "second")
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
  ("value", "digits", "shown"),
  [
    (3781.2, 3, "3780"),
    (1130.0, 2, "1100"),
    (0.0273, 3, "0.0273"),
    (212.4, 3, "212"),
    (180.0, 2, "180"),
  ],
)
def test_numbers_of_a_table_are_written_out(value, digits, shown):
  assert pipeline._rounded(value, digits) == shown
