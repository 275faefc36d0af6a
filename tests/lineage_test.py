"""Lineage: what a run started from, its exports, and what descends from it, wherever it lies."""

import json

import pytest

from jaxunlearn.reports import lineage


def make(folder, init_from="", **fields):
  folder.mkdir(parents=True)
  config = {"init_from": str(init_from), "train": {"steps": 1}, "data": {}, "streams": {}} | fields
  (folder / "config.json").write_text(json.dumps(config))
  lineage.begin(folder, config)
  return folder


@pytest.fixture
def runs(tmp_path):
  """base -> first -> second, an attack on first that learns from samples of base, a stranger."""
  base = make(tmp_path / "base", "assets:x", seed=1)
  first = make(tmp_path / "first", base, seed=2)
  make(tmp_path / "deep" / "second", first)
  take = {"x": {"take": f"samples:{base}"}, "a": "forget"}
  make(tmp_path / "attack", first, streams=take)
  make(tmp_path / "stranger", "hub:a/b", codec={"path": "assets:vae"})
  return tmp_path


def test_what_a_run_reads_of_others(runs):
  found = lineage.read(runs / "attack")["from"]
  assert [(one["field"], one["path"]) for one in found] == [
    ("init_from", str(runs / "first")),
    ("streams.x", str(runs / "base")),
  ]
  assert found[0]["config"] == lineage.digest(runs / "first")
  origins = [(one["origin"], one["path"]) for one in lineage.read(runs / "stranger")["from"]]
  assert origins == [("hub:a/b", ""), ("assets:vae", "")]
  assert lineage.read(runs / "base")["began"].endswith("+00:00")


def test_descendants_and_ancestors(runs):
  everything = lineage.runs(runs)
  names = lambda paths: [path.name for path in paths]
  assert names(everything) == ["attack", "base", "second", "first", "stranger"]
  assert names(lineage.descendants(runs / "base", everything)) == ["attack", "first", "second"]
  assert names(lineage.descendants(runs / "first", everything)) == ["attack", "second"]
  assert lineage.descendants(runs / "stranger", everything) == []
  origins = [one["origin"] for one in lineage.ancestors(runs / "deep" / "second")]
  assert origins == [str(runs / "first"), str(runs / "base"), "assets:x"]


def test_a_run_that_was_moved_or_has_no_lineage_is_found(runs):
  (runs / "first").rename(runs / "moved")
  (runs / "moved" / lineage.FILE).unlink()
  found = lineage.descendants(runs / "moved", lineage.runs(runs))
  assert [path.name for path in found] == ["attack", "second"]
  assert lineage.read(runs / "moved")["from"][0]["path"] == str(runs / "base")


def test_a_launch_again_and_a_damaged_file_change_nothing(runs):
  path = runs / "base" / lineage.FILE
  before = path.read_bytes()
  lineage.begin(runs / "base", {"init_from": "elsewhere"})
  assert path.read_bytes() == before
  path.write_text("{")
  assert lineage.read(runs / "base")["from"][0]["origin"] == "assets:x"


def test_a_run_of_an_older_version_has_no_time(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  lineage.begin(tmp_path, {})
  assert lineage.read(tmp_path)["began"] == ""


def test_runs_that_name_each_other_end(tmp_path):
  a, b = tmp_path / "a", tmp_path / "b"
  make(a, b)
  make(b, a)
  assert lineage.descendants(a, lineage.runs(tmp_path)) == [b]
  assert [one["path"] for one in lineage.ancestors(a)] == [str(b), str(a)]


def test_an_export_names_its_run_and_no_path(runs):
  out = runs / "exports" / "e"
  out.mkdir(parents=True)
  facts = lineage.exported(runs / "first", 40, "ema")
  (out / lineage.FILE).write_text(json.dumps(facts))
  lineage.note_export(runs / "first", out, facts)
  assert str(runs) not in (out / lineage.FILE).read_text() and facts["run"] == "first"
  (one,) = lineage.read(runs / "first")["exports"]
  assert (one["export"], one["step"], one["path"]) == (facts["export"], 40, str(out))
  out.rename(runs / "exports" / "moved")
  assert lineage.exports(runs) == {facts["export"]: [runs / "exports" / "moved"]}
  again = lineage.exported(runs / "first", 50, "ema", earlier=facts["export"])
  lineage.note_export(runs / "first", out, again)
  assert [one["step"] for one in lineage.read(runs / "first")["exports"]] == [50]
