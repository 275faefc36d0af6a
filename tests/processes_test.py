"""Several processes are one run: the same numbers, one set of files, one end; launched here."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxunlearn import build, checkpoint
from jaxunlearn.cdm import delete, ledger
from jaxunlearn.mesh import processes
from tests import meshes, nets, tiny_config

ROOT = pathlib.Path(__file__).parents[1]
DEVICES, STEPS = 4, 24
FLAGS = [
  "--config=tests/tiny_config.py:siss",
  "--config.mesh.data=2",
  "--config.mesh.fsdp=2",
  f"--config.train.steps={STEPS}",
  "--config.eval.after=True",
  "--config.eval.samples=16",
  "--config.eval.batch=8",
  "--config.eval.steps=2",
  "--config.eval.metrics=('target_rate','copy_score')",
]
LOST = 60  # seconds within which the others end


class Run:
  """A run of a few processes that share four devices, by launch/local.sh."""

  def __init__(self, workdir, flags=FLAGS):
    self.workdir, self.flags = workdir, flags
    self.log = workdir.with_suffix(".log")

  logged = "metrics.jsonl"

  def launch(self, n, *flags):
    return self.start(n, "jaxunlearn.main", *self.flags, *flags, f"--workdir={self.workdir}")

  def start(self, n, module, *flags):
    environment = os.environ | {
      "PYTHONPATH": str(ROOT),
      "JAX_NUM_CPU_DEVICES": str(DEVICES // n),
      "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", module, *flags]
    with self.log.open("a") as log:
      return subprocess.Popen(
        ["bash", "launch/local.sh", str(n), *command],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
      )

  def finish(self, n, *flags):
    code = wait(self.launch(n, *flags))
    assert code == 0, self.log.read_text()
    return self

  def until(self, launched, step):
    """Returns once so many steps are logged, while all processes go on."""
    path = self.workdir / self.logged
    while not path.exists() or path.read_bytes().count(b"\n") < step:
      assert launched.poll() is None, self.log.read_text()
      time.sleep(0.01)

  def metrics(self):
    lines = (self.workdir / self.logged).read_text().splitlines()
    return [json.loads(line) for line in lines]

  def state(self):
    """The newest checkpoint, in this one process on a mesh of its own."""
    config = tiny_config.get_config("siss")
    config.mesh.update(data=1, fsdp=1)
    setup = build.build(config)
    saves = checkpoint.Checkpoints(self.workdir / "checkpoints")
    state = saves.restore(build.make_state(setup, nets.random_params(setup.net)))
    saves.close()
    return jax.device_get(state)


def wait(launched):
  try:
    return launched.wait(timeout=300)
  finally:
    launched.kill()


def pids(run):
  """{index of a process: its pid}, of the processes of the run that are alive."""
  found = {}
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      command = (folder / "cmdline").read_bytes().split(b"\0")
      environment = (folder / "environ").read_bytes()
    except OSError:
      continue
    index = re.search(rb"JAX_PROCESS_ID=(\d+)", environment)
    mine = f"--workdir={run.workdir}".encode() in command and b"jaxunlearn.main" in command
    if mine and index and b"launch/local.sh" not in command:
      found[int(index[1])] = int(folder.name)
  return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The same run by one process."""
  return Run(tmp_path_factory.mktemp("whole") / "run").finish(1)


def assert_same(run, whole):
  """Equal but for the order of float32 sums; without key biases, whose true gradient is 0."""
  for got, want in zip(run.metrics(), whole.metrics(), strict=True):
    assert got == pytest.approx(want, rel=1e-4)
  state, want = run.state(), whole.state()
  assert int(state.step) == int(want.step) == STEPS
  for (path, got), leaf in zip(
    jax.tree.leaves_with_path(state), jax.tree.leaves(want), strict=True
  ):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not name.endswith("to_k/bias"):
      np.testing.assert_allclose(got, leaf, rtol=1e-3, atol=1e-4 * np.abs(leaf).max(), err_msg=name)
  assert_same_results(run, whole)


def assert_same_results(run, whole):
  """The same phases, values and files."""
  got, want = (json.loads((r.workdir / "results.json").read_text()) for r in (run, whole))
  assert got.keys() == want.keys()
  sides = lambda found: [(one["side"], one["metric"]) for one in found.pop("evidence", ())]
  assert sides(got) == sides(want)
  for phase, values in want.items():
    for name, entry in values.items():
      assert got[phase][name]["value"] == pytest.approx(entry["value"], rel=1e-3)
      assert got[phase][name]["identity"] == entry["identity"]
  files = lambda r: sorted(p.name for p in r.workdir.rglob("*") if "checkpoints" not in p.parts)
  assert files(run) == files(whole)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
  """The same run by two processes."""
  return Run(tmp_path_factory.mktemp("of_two") / "run").finish(2)


def test_two_processes_give_the_numbers_of_one(of_two, whole):
  assert_same(of_two, whole)


def test_a_signal_to_one_of_four_stops_all_and_two_go_on(tmp_path, whole):
  run = Run(tmp_path / "run")
  launched = run.launch(4)
  run.until(launched, 3)
  os.kill(pids(run)[2], signal.SIGTERM)
  assert wait(launched) == 143, run.log.read_text()
  step = checkpoint.latest_step(run.workdir)
  assert step is not None and 3 <= step < STEPS
  assert len(run.metrics()) == step
  assert run.log.read_text().count(f"stopped by a signal after step {step};") == 4
  assert_same(run.finish(2), whole)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_ends_and_one_process_goes_on(tmp_path, whole, victim):
  run = Run(tmp_path / "run")
  launched = run.launch(2)
  run.until(launched, 6)
  alive = pids(run)
  os.kill(alive[victim], signal.SIGKILL)
  began = time.monotonic()
  assert wait(launched) != 0
  assert time.monotonic() - began < LOST
  assert not pids(run)
  assert processes.LOST in run.log.read_text() or "another task died" in run.log.read_text()
  assert_same(run.finish(1), whole)


def test_a_damaged_checkpoint_is_passed_over_by_all(tmp_path, of_two, whole):
  run = Run(shutil.copytree(of_two.workdir, tmp_path / "run"))
  for path in (run.workdir / f"checkpoints/{STEPS}/params").glob("ocdbt.process_*/d/*"):
    content = bytearray(path.read_bytes())
    content[40:44] = b"\x55" * 4
    path.write_bytes(content)
  (run.workdir / "results.json").unlink()
  run.finish(2)
  assert (run.workdir / "damaged" / str(STEPS)).is_dir()
  (run.workdir / "damaged").rename(tmp_path / "damaged")
  for path in (tmp_path / "damaged").rglob("*"):
    assert "checkpoints" not in path.parts
  assert_same(run, whole)


class Sources(Run):
  """The same of a compartmentalised run: four sources, each on a device of its own."""

  logged = "shards/uniform-0/metrics.jsonl"

  def __init__(self, workdir, *flags):
    shorter = [
      "--config.train.steps=8",
      "--config.compose.attributed=0",
      "--config.compose.calibration_levels=1",
      "--config.eval.metrics=('copy_score',)",
    ]
    super().__init__(workdir, ["--config=tests/tiny_cdm.py", *shorter, *flags])

  def states(self):
    """Each source's newest checkpoint."""
    cdm = delete.open_run(self.workdir)
    training = cdm.training()
    return jax.device_get({name: training.restore(shard) for name, shard in cdm.shards().items()})

  def command(self, name, *flags):
    """A command on the run, by two processes."""
    code = wait(self.start(2, f"jaxunlearn.cdm.{name}", f"--run={self.workdir}", *flags))
    assert code == 0, self.log.read_text()


def test_processes_that_are_stopped_and_go_on_train_the_sources_of_one(tmp_path):
  whole = Sources(tmp_path / "whole").finish(1)
  run = Sources(tmp_path / "run", "--config.mesh.data=1", "--config.mesh.fsdp=4")
  launched = run.launch(2)
  run.until(launched, 4)
  os.kill(pids(run)[1], signal.SIGTERM)
  assert wait(launched) == 143, run.log.read_text()
  run.finish(2)
  meshes.assert_close(run.states(), whole.states())
  assert_same_results(run, whole)
  for one in (run, whole):
    ledger.verify(one.workdir)
  record = delete.open_run(run.workdir).shards()["uniform-1"].records.ids[0]
  run.command("delete", f"--ids={record}", "--prove")
  events = [line["event"] for line in ledger.Ledger(run.workdir).lines()]
  assert events.count("proof") == events.count("delete") == 1
  assert run.log.read_text().count("proven: uniform-1 equal, bit for bit") == 1
  ledger.verify(run.workdir)
  left = run.states()
  meshes.assert_close({**left, "uniform-1": 0}, {**whole.states(), "uniform-1": 0})


def test_bad_input_that_one_process_sees_ends_all(tmp_path):
  run = Run(tmp_path / "run")
  run.workdir.mkdir()
  (run.workdir / "config.json").write_text('{"seed": 1}')
  assert wait(run.launch(2)) == 2
  assert run.log.read_text().count("holds a run of another config") == 2


@pytest.mark.parametrize(
  ("environment", "several"),
  [
    ({}, False),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
    ({"SLURM_NTASKS": "4"}, False),  # an allocation, but not a step of it
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"JAX_NUM_PROCESSES": "2"}, True),
  ],
)
def test_a_launcher_is_known_by_its_variables(environment, several):
  assert processes.launched(environment) == several


def test_the_three_variables():
  given = dict(zip(processes.EXPLICIT, ("host:1234", "4", "3"), strict=True))
  assert processes.explicit(given) == {
    "coordinator_address": "host:1234",
    "num_processes": 4,
    "process_id": 3,
  }
  assert processes.explicit({}) == {}


@pytest.mark.parametrize("values", [("", "4", "3"), ("h:1", "4", "4"), ("h:1", "x", "0")])
def test_variables_that_do_not_fit(values):
  with pytest.raises(ValueError, match="set all three"):
    processes.explicit(dict(zip(processes.EXPLICIT, values, strict=True)))


def test_one_process_is_all_of_them():
  assert processes.first()
  assert processes.from_first(lambda: 3) == 3
  tree = {"a": np.ones(2), "b": jax.numpy.ones(2)}
  assert all(leaf is tree[name] for name, leaf in processes.local(tree).items())
