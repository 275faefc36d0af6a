"""What a step costs is written apart; noise in the model's shape stands in for the data."""

import json
import time
import types

import jax
import numpy as np
import pytest

from configs import pretrain_styles, siss_mnist, unlearn_fashion
from jaxunlearn import build, data, methods, step
from jaxunlearn.compiled import flops, topology
from jaxunlearn.data import synthetic
from jaxunlearn.reports import timing


def test_all_steps_take_the_mean_lap_times_their_number(tmp_path):
  path = tmp_path / "timing.jsonl"
  assert timing.total(path) is None
  lines = [{"step": 10, "seconds": 0.5}, {"step": 20, "seconds": 1.5}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert timing.total(path) == 20.0


def test_laps_count_their_steps_and_leave_out_what_is_between(tmp_path, monkeypatch):
  now = iter([0.0, 10.0, 10.0, 100.0, 101.0, 101.0])
  monkeypatch.setattr(time, "perf_counter", lambda: next(now))
  clock = timing.Clock(tmp_path / "timing.jsonl", batch=8, peak=12e12)
  assert clock.lap(1, 6e12) == {}  # of the first step, which compiles
  clock.start(1)
  assert clock.lap(1, 6e12) == {}
  assert clock.lap(6, 6e12) == {"rows/s": "4", "TFLOP/s": "3", "of peak": "25%"}
  clock.start(6)  # after a checkpoint
  assert clock.lap(7, 3e12) == {"rows/s": "8", "TFLOP/s": "3", "of peak": "25%"}
  rates = {"tflops_per_second": 3.0, "share_of_peak": 0.25}
  lines = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
  assert lines == [
    {"step": 6, "seconds": 2.0, "rows_per_second": 4.0, **rates},
    {"step": 7, "seconds": 1.0, "rows_per_second": 8.0, **rates},
  ]


def test_the_peak_of_devices_that_are_known():
  of = lambda kind, dtype, n=1: timing.peak([types.SimpleNamespace(device_kind=kind)] * n, dtype)
  assert of("TPU v5 lite", "bfloat16", 8) == 8 * 197e12  # not a v5p
  assert of("TPU v5", "float32") == 459e12
  assert of("NVIDIA A100-SXM4-80GB", "float32") == 156e12
  assert of("NVIDIA H100 80GB HBM3", "bfloat16") == pytest.approx(989.4e12)
  assert of("cpu", "float32") is None and of("NVIDIA L400", "float32") is None


@pytest.mark.parametrize("module", [unlearn_fashion, siss_mnist])
def test_flops_are_those_of_the_passes_and_no_less_in_micro_batches(module):
  """Of forward passes and of twice as many for each gradient, as the network's own count says."""
  config = module.get_config()
  config.train.synthetic = True
  counts = []
  for n in (1, 2):
    config.train.micro_batches = n
    setup = build.build(config)
    state, batch = topology.state_of(setup), topology.batch_of(setup)
    counts.append(step.flops(setup, state, batch))
  shape = (config.train.batch, *setup.net.image_shape)
  x, t = jax.ShapeDtypeStruct(shape, np.float32), jax.ShapeDtypeStruct(shape[:1], np.int32)
  c = jax.ShapeDtypeStruct(shape[:1], np.int32) if setup.net.classes else None
  once = flops.count(setup.net.apply, state.params, x, t, c)
  most = setup.method.forwards + 2 * setup.method.backwards
  assert counts == pytest.approx([most * once] * 2, rel=0.05)


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
