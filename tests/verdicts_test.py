"""The verdict column: which runs are held against which, and what a table shows of it."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxunlearn import build, pipeline
from jaxunlearn.evals import three_sample
from jaxunlearn.evaluation import Evaluation
from jaxunlearn.reports import verdicts
from tests import nets, tiny_config

SEEDS = (0, 1, 2)
ROWS = {"pretrained": 3.0, "retrained": 0.0, "good": 0.0, "naive": 3.0}  # means of the features


def config_of(seeds=SEEDS):
  config = ConfigDict({"runs": {}, "rows": (), "published": ()})
  config.columns = (("rate", "rate"), ("verdict", "verdict"))
  for row in ROWS:
    names = tuple(f"{row}_{seed}" for seed in seeds)
    config.rows += ((row, names, ()),)
    for name, seed in zip(names, seeds, strict=True):
      run = {"forget": {"label": "tshirt"}, "eval": {"seed": seed}, "train": {"steps": 5}}
      config.runs[name] = ConfigDict(run)
  return config


@pytest.fixture
def workdir(tmp_path):
  verdicts.read.cache_clear()
  rate = {"rate": {"value": 0.0, "ci95": None, "identity": "extractor=none"}}
  for i, (row, mean) in enumerate(ROWS.items()):
    for seed in SEEDS:
      run = tmp_path / f"{row}_{seed}"
      values = np.random.default_rng((i, seed)).normal(mean, 1, (40, 3))
      verdicts.write(run, "after", verdicts.Features(values, "digits:ab"))
      (run / "results.json").write_text(json.dumps({"after": rate}))
  return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  quick = three_sample.Settings(permutations=199, bandwidths=(1.0,), lam=(0.1,))
  monkeypatch.setattr(three_sample, "Settings", lambda: quick)


def test_each_run_is_held_against_runs_of_other_seeds():
  config = config_of()
  assert verdicts._partners(config, "good_0") == ("retrained_1", "pretrained_2")
  assert verdicts._partners(config, "good_2") == ("retrained_0", "pretrained_1")
  assert verdicts._partners(config, "retrained_1") == ("retrained_2", "pretrained_0")
  assert verdicts._partners(config_of(seeds=(0, 1)), "good_0") is None


def test_partners_have_the_same_request_to_forget():
  config = config_of()
  config.runs.retrained_1.forget = {"label": "7"}
  assert verdicts._partners(config, "good_0") == ("retrained_2", "pretrained_1")
  config.runs.good_0.forget = {"label": "9"}
  assert verdicts._partners(config, "good_0") is None


def test_a_table_says_which_are_nearer_the_retrained(workdir):
  results = pipeline.summarise(config_of(), workdir)
  said = {row: results[row]["verdict"]["words"].partition(", p")[0] for row in ROWS}
  assert said["good"] == said["retrained"] == three_sample.RETRAINED
  assert said["naive"] == said["pretrained"] == three_sample.ORIGINAL
  entry = results["naive"]["verdict"]
  assert entry["runs"] == [0.005] * 3 and entry["value"] == pytest.approx(0.0075)
  assert "features=digits:ab u=naive_0 r=retrained_1 o=pretrained_2" in entry["identity"][0]
  table = pipeline.markdown(config_of(), results).splitlines()
  assert table[-1] == "| naive | 5 | 0 ± 0 | nearer the original, p 0.0075 |"
  json.dumps(results, allow_nan=False)


def test_a_row_whose_runs_disagree_says_so(workdir):
  row = verdicts.of_row(config_of(), workdir, ("good_0", "good_1", "naive_0", "naive_1"))
  assert row["words"] == "runs disagree, p 0.01" and row["p_retrained"] == 0.01


def test_what_has_no_verdict_shows_a_dash(workdir):
  for name in ("good_0", "good_1", "good_2"):
    (workdir / name / "features" / "after.npz").unlink()
  for seed, values in enumerate((np.full((40, 3), np.nan), np.zeros((40, 3)), np.zeros((40, 3)))):
    extractor = "digits:ab" if seed == 0 else "other:cd"
    verdicts.write(workdir / f"naive_{seed}", "after", verdicts.Features(values, extractor))
  verdicts.read.cache_clear()
  results = pipeline.summarise(config_of(), workdir)
  table = pipeline.markdown(config_of(), results).splitlines()
  assert [line.rpartition("| ")[2] for line in table[-2:]] == ["- |", "- |"]


def test_the_p_value_of_a_row_holds_for_runs_that_hang_together():
  assert verdicts.combined([0.03]) == 0.03
  assert verdicts.combined([0.9, 0.02, 0.01]) == pytest.approx(1.5 * 0.02)
  assert verdicts.combined([0.9, 0.8]) == 1.0
  rng = np.random.default_rng(0)
  shared = rng.random(4000)
  alike = [verdicts.combined([p, p, p]) for p in shared]
  apart = [verdicts.combined(list(p)) for p in rng.random((4000, 3))]
  for found in (alike, apart):
    assert np.mean(np.array(found) <= 0.05) < 0.06


def test_an_evaluation_keeps_features_of_all_its_samples(tmp_path):
  verdicts.read.cache_clear()
  config = tiny_config.get_config()
  config.mesh.update(data=1, fsdp=1)
  config.eval.update(features=True, samples=6, batch=3, steps=1)
  setup = build.build(config)
  Evaluation(setup, tmp_path, lambda: False).once("after", nets.random_params(setup.net))
  found = verdicts.read(tmp_path / "features" / "after.npz")
  assert found.values.shape == (6, 64) and found.values.dtype == np.float16
  assert found.extractor.startswith("digit_classifier")
