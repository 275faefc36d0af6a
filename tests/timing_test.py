"""What a step costs is written apart; noise in the model's shape stands in for the data."""

import json
import time

import numpy as np

from configs import pretrain_styles, siss_mnist, unlearn_fashion
from jaxunlearn import build, data, methods
from jaxunlearn.data import synthetic
from jaxunlearn.reports import timing


def test_laps_count_their_steps_and_leave_out_what_is_between(tmp_path, monkeypatch):
  now = iter([0.0, 10.0, 10.0, 100.0, 101.0, 101.0])
  monkeypatch.setattr(time, "perf_counter", lambda: next(now))
  clock = timing.Clock(tmp_path / "timing.jsonl", batch=8)
  assert clock.lap(1) == {}  # of the first step, which compiles
  clock.start(1)
  assert clock.lap(1) == {}
  assert clock.lap(6) == {"rows/s": "4"}
  clock.start(6)  # after a checkpoint
  assert clock.lap(7) == {"rows/s": "8"}
  lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
  assert lines == [
    {"step": 6, "seconds": 2.0, "rows_per_second": 4.0},
    {"step": 7, "seconds": 1.0, "rows_per_second": 8.0},
  ]


def test_noise_has_the_shape_and_the_conditions_of_the_model(monkeypatch):
  """For a class, for single records, and for two conditions; no data is read."""
  monkeypatch.setattr(data, "load", lambda *_, **__: 1 / 0)
  for module in (unlearn_fashion, siss_mnist, pretrain_styles):
    config = module.get_config()
    config.train.synthetic = True
    setup = build.build(config)
    assert setup.train.image.shape == (synthetic.N, *setup.net.image_shape)
    assert 0 < setup.forget.sum() < synthetic.N
    assert setup.concept == (data.Concept(0, 0) if setup.net.classes else None)
    rows = setup.host_batch(0)
    assert all(isinstance(one, methods.Rows) for one in rows.values())
    assert all(np.ptp(one.image) > 1.9 for one in rows.values())
