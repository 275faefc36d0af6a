"""Bad input is one clear line and an exit code, before anything is written or lost."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import common
from jaxunlearn import build, checkpoint, train
from tests import nets, tiny_config

ROOT = pathlib.Path(__file__).parents[1]


def launch(*flags, config="tests/tiny_config.py", **env):
  """`python -m jaxunlearn.main`, as a user runs it."""
  config = [f"--config={config}"] if config else []
  return subprocess.run(
    [sys.executable, "-m", "jaxunlearn.main", *config, *flags],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    capture_output=True,
    text=True,
    check=False,
  )


def one_line_of(done):
  """What the user reads: the error, on one line; no traceback."""
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1, done.stderr
  return lines[0]


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--config.trian.steps=3"], "no config field 'trian' (did you mean 'train'?)"),
    (["--config.train.stesp=3"], "no config field 'stesp' (did you mean 'steps'?)"),
    (["--config.zzz=3"], "no config field 'zzz'; configs/common.py has them all"),
    (["--config.train.steps=many"], "--config.train.steps=many"),
    (["--wrokdir=x"], "'wrokdir'. Did you mean: workdir"),
    (["x"], "'x' is not a flag; write --config.FIELD=VALUE"),
    ([], "--workdir is missing"),
  ],
)
def test_wrong_flags(flags, says):
  assert says in one_line_of(launch(*flags))


def test_a_config_that_is_missing_or_fails():
  assert "--config is missing" in one_line_of(launch(config=""))
  assert "'configs/nope.py'" in one_line_of(launch(config="configs/nope.py"))
  said = one_line_of(launch("--workdir=x", config="tests/tiny_config.py:sis"))
  assert "no method 'sis' (did you mean 'siss'?); there are: concept_ablation, " in said


def test_help_is_quick_and_useful():
  """It does not import JAX."""
  done = launch("--help", config="", PYTHONPROFILEIMPORTTIME="1")
  for word in (
    "--config.train.steps=40",
    "--workdir",
    "dry_run",
    "Exit codes",
    "configs/common.py",
  ):
    assert word in done.stdout
  assert not any(line.endswith("| jax") for line in done.stderr.splitlines())


def test_main_names_the_nearest_method(tmp_path):
  done = launch("--config.method.name=sis", f"--workdir={tmp_path}/run")
  assert one_line_of(done).startswith(
    "error: no method 'sis' (did you mean 'siss'?); there are: concept_ablation, "
  )
  assert not (tmp_path / "run").exists()


@pytest.fixture
def config():
  return tiny_config.get_config()


BAD = {
  "method": ({"method.name": "sis"}, r"no method 'sis' \(did you mean 'siss'\?\); there are: "),
  "model": ({"model.name": "unte"}, r"no model 'unte' \(did you mean 'unet'\?\); there are: "),
  "metric": (
    {"eval.metrics": ("nlll",)},
    r"no metric 'nlll' \(did you mean 'nll'\?\); there are: ",
  ),
  "source": (
    {"data.source": "mnist"},
    r"no data source 'mnist'.*mnist_tshirt, tfds_images, tfds_tshirt",
  ),
  "schedule": ({"process.schedule": "liner"}, r"no schedule 'liner' \(did you mean 'linear'\?\)"),
  "rates": ({"optimizer.schedule": "cos"}, "no learning-rate schedule 'cos'"),
  "subset": ({"streams.x": "keep"}, "no subset 'keep'; there are: all, retain, forget"),
  "ids": (
    {"forget.label": "", "forget.ids": ("mnist/99",)},
    r"1 of 1 ids to forget do not exist, the first is 'mnist/99' \(did you mean 'mnist/0",
  ),
  "class": ({"forget.label": "shirt"}, r"no class 'shirt' \(did you mean 'tshirt'\?\)"),
  "no forget set": (
    {"forget.label": "", "streams.x": "forget"},
    "stream 'x' is the forget set, which is empty; say what to delete in config.forget",
  ),
  "empty class": ({"data.share": 0.0}, "forget.label selects no record"),
  "batch": (
    {"train.batch": 60, "mesh.data": 8},
    "batch 60 does not divide over 8 devices x 1 micro-batches; use a multiple of 8",
  ),
  "micro-batches": ({"train.micro_batches": 3}, "16 does not divide over 8 devices x 3 micro-"),
  "no batch": ({"train.batch": 0}, "config.train.batch is 0; use a whole number, 1 or more"),
  "never saved": ({"train.checkpoint_every": 0}, "config.train.checkpoint_every is 0"),
  "mesh": ({"mesh.data": 3, "mesh.fsdp": 5}, "mesh data=3 fsdp=5 does not fit 8 devices"),
  "size": (
    {"model.sample_size": 32},
    r"images are \(28, 28, 1\) and the model takes \(32, 32, 1\)",
  ),
  "origin": ({"init_from": "/nowhere"}, "init_from '/nowhere' is not a folder"),
  "no weights": ({"init_from": "assets:nothing"}, "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused_before_the_run_is_made(case, config, tmp_path):
  overrides, says = BAD[case]
  config.update_from_flattened_dict(overrides)
  with pytest.raises(ValueError, match=says) as error:
    train.run(config, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_forget_everything(config, tmp_path):
  file = tmp_path / "ids.txt"
  train_set = build.build(config).train
  file.write_text("\n".join(train_set.ids))
  config.forget.update(label="", file=str(file))
  with pytest.raises(ValueError, match="forget selects all 108 records; keep at least one"):
    build.build(config)


def test_a_method_without_its_stream(config):
  config.method = common.method("siss")
  config.streams = {"x": "retain"}
  with pytest.raises(ValueError, match=r"method siss reads stream 'a'; set config\.streams\.a to"):
    build.build(config)


@pytest.fixture
def quick(monkeypatch):
  """No network to initialise and no report to write."""
  monkeypatch.setattr(build.models, "make", lambda **_: nets.Line())
  monkeypatch.setattr(train.report, "write", lambda _: {})


def test_a_workdir_of_another_config(config, tmp_path, quick):
  config.train.steps = 0
  train.run(config, tmp_path)
  before = (tmp_path / "config.json").read_text()
  config.optimizer.learning_rate = 0.5
  says = r"another config \(differs in: optimizer.learning_rate 0.001 -> 0.5\); use another .*; to "
  says += rf"train that run further, use another --workdir with --config.init_from={tmp_path}$"
  with pytest.raises(ValueError, match=says):
    train.run(config, tmp_path)
  assert (tmp_path / "config.json").read_text() == before


def test_a_workdir_may_change_its_mesh(config, tmp_path, quick):
  config.train.steps = 0
  train.run(config, tmp_path)
  config.mesh.update(data=1, fsdp=8)
  train.run(config, tmp_path)
  assert json.loads((tmp_path / "config.json").read_text())["mesh"] == {"data": 1, "fsdp": 8}


def test_a_workdir_that_cannot_be_written(config, tmp_path):
  (tmp_path / "file").write_text("")
  for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(ValueError, match=r"cannot write to .*; use another --workdir"):
      train.run(config, workdir)


def test_starting_from_a_checkpoint_of_another_shape(config, tmp_path):
  setup = build.build(config)
  saves = checkpoint.Checkpoints(tmp_path / "first" / "checkpoints")
  saves.save(build.make_state(setup, nets.random_params(setup.net)))
  saves.close()
  config.init_from = str(tmp_path / "first")
  config.model.block_out_channels = (16,)
  with pytest.raises(ValueError, match=r"params has .* and this config .*; use the model") as error:
    train.run(config, tmp_path / "second")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "second").exists()
