"""The table of several audits: what is read of their files, its order, and the page."""

import json
import re

import pytest

from jaxunlearn.commands import leaderboard


def cell(value, judge="pets:1"):
  return {"value": value, "ci95": None, "identity": [f"asked=9 extractor={judge} n=9"], "runs": [1]}


def row(steps=10, **values):
  return {"steps": steps, "runs": 1, "diverged": [], "curves": {}} | {
    name: cell(value) for name, value in values.items()
  }


@pytest.fixture
def paths(tmp_path):
  first = {
    "base": row(0, ua=0.1, ira=0.9),
    "DiMUM": row(ua=1.0, ira=0.8, worst_ira=0.4, ar_few=0.3, ar_few_mean=0.9, ar_int4=0.5),
    "ESD": row(ua=0.9, worst_ira=0.6, ar_few=0.5, ar_few_distance=44.0),
    "diverged": row(ua="nan"),
  }
  second = {"UCE <b>": row(ua=0.7, ar_few=0.2, seconds=3.0)}
  second["UCE <b>"]["verdict"] = {"value": "kept", "words": "kept", "identity": "x"}
  for name, table in (("one", first), ("two", second)):
    (tmp_path / f"{name}.json").write_text(json.dumps(table))
  return [tmp_path / "one.json", tmp_path / "two.json"]


def test_the_lowest_attack_recovery_comes_first_and_the_better_kept_of_equals(paths):
  entries = leaderboard.ordered([entry for path in paths for entry in leaderboard.read(path)])
  assert [entry.label for entry in entries] == ["UCE <b>", "ESD", "DiMUM", "diverged", "base"] or [
    entry.label for entry in entries
  ] == ["UCE <b>", "ESD", "DiMUM", "base", "diverged"]
  assert [entry.largest for entry in entries] == [0.2, 0.5, 0.5, None, None]
  assert {entry.judge for entry in entries if entry.label != "diverged"} == {"pets:1"}


def test_means_and_distances_are_no_attacks(paths):
  found = [entry for path in paths for entry in leaderboard.read(path)]
  assert leaderboard.columns(found) == [*("ua", "ira", "worst_ira", "ar_few", "ar_int4", "seconds")]


def test_the_table_and_the_page_have_every_row(paths, tmp_path, capsys):
  leaderboard.make(paths, tmp_path / "out" / "board")
  text = (tmp_path / "out" / "board.md").read_text()
  assert text == capsys.readouterr().out
  assert "| ESD | one | 0.5 | 0.9 | - | 0.6 | 0.5 | - | - | 10 | pets:1 |" in text
  html = (tmp_path / "out" / "board.html").read_text()
  assert "UCE &lt;b&gt;" in html and "<b>" not in html
  assert html.count("<tr class=") == 5 and "main:has(#s1:not(:checked)) .s1" in html
  assert html.count('<input type="checkbox"') == 2 + len({"pets:1"}) + 6


def test_the_page_can_ask_how_much_is_unlearned_and_kept_at_least(paths):
  entries = leaderboard.read(paths[0])
  html = leaderboard.page(entries)
  assert [entry.kept for entry in entries] == [0.9, 0.8, 0.0, 0.0]
  of = {label: re.search(rf'<tr class="([^"]*)"><th scope="row">{label}', html) for label in BELOW}
  below = {label: re.findall(r"below-(\w+)", found[1]) for label, found in of.items()}
  assert below == {label: places.split() for label, places in BELOW.items()}
  assert "main:has(#k4:checked) .below-k4 { display: none; }" in html
  assert "main:has(#u4:checked) .below-u4 { display: none; }" in html
  assert html.count('name="k"') == html.count('name="u"') == 5
  assert 'id="k0" checked>' in html and 'id="u0" checked>' in html


BELOW = {
  "base": "u1 u2 u3 u4",
  "DiMUM": "k4",
  "ESD": "k1 k2 k3 k4",
  "diverged": "u1 u2 u3 u4 k1 k2 k3 k4",
}


@pytest.mark.parametrize("content", ["[1]", "{", '{"a": 3}', '{"a": {}}'])
def test_another_file_is_refused(tmp_path, content):
  path = tmp_path / "x.json"
  path.write_text(content)
  with pytest.raises(ValueError, match=r"x\.json is no results file of an audit .*; give the \.js"):
    leaderboard.read(path)
