"""A small part of tests/fuzz.py: bad input ends as the command line documents it."""

import pytest
from absl import flags, logging

from tests import fuzz

TRIES = 200


@pytest.fixture
def as_before(monkeypatch):
  """What the command line and a quiet process change is put back."""
  monkeypatch.setenv("TQDM_DISABLE", "1")
  level = logging.get_verbosity()
  yield
  logging.set_verbosity(level)
  for name in ("config", "workdir"):
    flags.FLAGS[name].unparse()


def test_some_tries_are_accepted_or_refused_in_one_line(as_before):
  tries = list(fuzz.tried(first=10**6, count=TRIES, seed=0))
  assert [one for one in tries if one["end"] == "failed"] == []
  ends = [one["end"] for one in tries]
  assert ends.count("refused") > TRIES / 2 and ends.count("accepted") > TRIES / 20
  assert {one["kind"] for one in tries} >= set(list(fuzz.KINDS)[:5])


def test_a_traceback_counts_as_a_failure(monkeypatch):
  def broken(*_):
    raise TypeError("unhashable")

  monkeypatch.setattr(fuzz, "KINDS", {"a field of a config": (broken, 1.0)})
  (one,) = fuzz.tried(first=0, count=1, seed=0)
  assert one["end"] == "failed" and "TypeError: 'unhashable' at fuzz_test.py" in one["said"]
  lines = fuzz.table([one]).splitlines()
  assert lines[2:] == ["| a field of a config | 1 | 0 | 0 | 1 |", "| all | 1 | 0 | 0 | 1 |"]
