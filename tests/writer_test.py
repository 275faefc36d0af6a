"""metrics.jsonl survives kills: whole lines only, and no step twice after a resume."""

import json

import pytest

from jaxunlearn.reports import writer


@pytest.fixture
def path(tmp_path):
  return tmp_path / "metrics.jsonl"


def write(path, steps, resume_from=0):
  with writer.Writer(path, resume_from) as out:
    for step in steps:
      out.write_scalars(step, {"loss": step / 2})


def test_one_json_object_a_line(path):
  write(path, [1, 2])
  assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'


def test_lines_are_on_disk_as_soon_as_they_are_written(path):
  with writer.Writer(path) as out:
    out.write_scalars(1, {"loss": 1.0})
    assert writer.read(path) == [{"step": 1, "loss": 1.0}]


def test_a_resumed_run_repeats_no_step(path):
  write(path, range(1, 8))
  write(path, range(5, 9), resume_from=4)
  assert [line["step"] for line in writer.read(path)] == list(range(1, 9))


def test_a_line_cut_off_by_a_kill_is_dropped(path):
  write(path, range(1, 4))
  path.write_text(path.read_text()[:-5])
  assert [line["step"] for line in writer.read(path)] == [1, 2]
  write(path, [3], resume_from=3)
  assert [line["step"] for line in writer.read(path)] == [1, 2, 3]


def test_nan_and_infinity_stay_strict_json(path):
  with writer.Writer(path) as out:
    out.write_scalars(1, {"a": float("nan"), "b": float("-inf"), "c": 1.5})
  strict = json.loads(path.read_text(), parse_constant=pytest.fail)
  assert strict == {"step": 1, "a": "nan", "b": "-inf", "c": 1.5}


def test_a_file_that_is_not_there_is_empty(path):
  assert writer.read(path) == []
