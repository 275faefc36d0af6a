"""Exporting a run: which parameters, which curve, and clear words where there is no run."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxunlearn import checkpoint, export, pretrained, sharding
from jaxunlearn.writer import Writer
from tests import tiny_unet

NET = dataclasses.replace(
  tiny_unet.NET,
  block_out_channels=(8,),
  down_block_types=("DownBlock2D",),
  up_block_types=("UpBlock2D",),
)
PARAMS = tiny_unet.random_params(NET, seed=1)
EMA = tiny_unet.random_params(NET, seed=2)
STEPS = 450


def make_run(directory, ema):
  """A run's working directory at step 450, killed at step 460, with and without an average."""
  older = checkpoint.State(jnp.int32(400), EMA, PARAMS if ema else {}, {}, {})
  newest = checkpoint.State(jnp.int32(STEPS), PARAMS, EMA if ema else {}, {}, {})
  where = sharding.replicated(sharding.make_mesh(data=1))
  saves = checkpoint.Checkpoints(directory / "checkpoints")
  saves.save(sharding.put(older, where))
  saves.save(sharding.put(newest, where))
  saves.wait()
  saves.close()
  model = {"name": "unet", **dataclasses.asdict(NET)}
  config = {"model": model, "ema": 0.99 if ema else 0.0, "train": {"steps": 500, "batch": 16}}
  (directory / "config.json").write_text(json.dumps(config))
  with Writer(directory / "metrics.jsonl") as writer:
    for step in range(1, STEPS + 10):
      writer.write_scalars(step, {"loss_x": 1 / step, "loss_a": float(step), "grad_norm": 2.0})
      if step % 100 == 0:
        writer.write_scalars(step, {"target_rate": 0.5})
  return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("run"), ema=True)


@pytest.fixture(scope="module")
def run_without_ema(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("no_ema"), ema=False)


def assert_holds(folder, want):
  got = pretrained.load(folder, tiny_unet.shapes(NET))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_average_is_exported_with_its_loss_curve(run, tmp_path):
  line = export.export(run, tmp_path / "out")
  assert_holds(tmp_path / "out", EMA)
  count = sum(leaf.size for leaf in jax.tree.leaves(EMA))
  assert line == f"wrote ema of {run} at step 450 ({count:,} parameters) to {tmp_path / 'out'}"
  training = json.loads((tmp_path / "out" / "training.json").read_text())
  assert training["weights"] == "ema"
  assert training["final_step"] == STEPS
  assert training["train"] == {"steps": 500, "batch": 16}
  step = np.array(training["step"])
  assert (len(step), step[0], step[-1]) == (200, 1, STEPS)
  assert set(np.diff(step)) == {2, 3}
  np.testing.assert_array_equal(training["loss_x"], 1 / step)
  np.testing.assert_array_equal(training["loss_a"], step)


def test_raw_parameters_on_request_and_where_there_is_no_average(run, run_without_ema, tmp_path):
  assert "params of" in export.export(run, tmp_path / "raw", raw=True)
  assert "params of" in export.export(run_without_ema, tmp_path / "no_ema")
  assert_holds(tmp_path / "raw", PARAMS)
  assert_holds(tmp_path / "no_ema", PARAMS)


def test_the_run_is_left_as_it_was(run, tmp_path):
  files = lambda: {p: p.stat().st_mtime_ns for p in run.rglob("*")}
  before = files()
  export.export(run, tmp_path / "out")
  assert files() == before


def test_short_curves_are_whole():
  lines = [{"step": s, "loss_x": float(s)} for s in (1, 2, 3)]
  assert export.loss_curve(lines, 2) == {"step": [1, 2], "loss_x": [1.0, 2.0]}
  assert export.loss_curve([], 2) == {"step": []}


def command(*argv):
  with flagsaver.flagsaver():
    export.main(flags.FLAGS(["export", *argv]))


def test_the_command_prints_one_line(run, tmp_path, capsys):
  command(f"--run={run}", f"--out={tmp_path / 'out'}", "--raw")
  out = capsys.readouterr().out
  assert out.startswith("wrote params of ") and out.count("\n") == 1
  assert_holds(tmp_path / "out", PARAMS)


def no_config(run):
  (run / "config.json").unlink()


def of_diffusers(run):
  (run / "config.json").write_text('{"_class_name": "UNet2DModel"}')


def cut_off(run):
  (run / "config.json").write_text('{"model"')


def of_another_model(run):
  config = json.loads((run / "config.json").read_text())
  config["model"]["block_out_channels"] = [16]
  (run / "config.json").write_text(json.dumps(config))


def no_checkpoint(run):
  shutil.rmtree(run / "checkpoints")


def out_is_a_file(run):
  (run / "out").write_text("")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (no_config, "give a run's working directory"),
    (of_diffusers, "config.json is not of a run; give a run's working directory"),
    (cut_off, "give a run's working directory"),
    (of_another_model, "use the model and method it was saved with"),
    (no_checkpoint, "holds no checkpoint"),
    (out_is_a_file, "is a file; give --out another name"),
  ],
)
def test_what_cannot_be_exported_is_one_line_and_exit_2(spoil, message, run, tmp_path, capsys):
  copy = shutil.copytree(run, tmp_path / "run")
  spoil(copy)
  with pytest.raises(SystemExit, match="2"):
    command(f"--run={copy}", f"--out={copy / 'out'}")
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error
  assert not (copy / "out").is_dir()


def test_a_missing_flag_is_one_line_and_exit_2(capsys):
  with pytest.raises(SystemExit, match="2"):
    command("--run=somewhere")
  assert capsys.readouterr().err == (
    "error: --run or --out is missing; try --run=runs/NAME --out=FOLDER\n"
  )
