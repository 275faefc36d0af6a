"""The launch scripts: linted, run in dry mode, and with stand-ins for the programs they call."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from jaxunlearn.errors import BAD_INPUT, PROCESS_LOST
from jaxunlearn.mesh import processes

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ("local.sh", "tpu_pod.sh", "slurm.sbatch")
FLAGS = ["--config=configs/siss_mnist.py", "--workdir=/mnt/a b", "--config.forget.ids=('it''s',)"]
SAVES = """
import signal, sys, time
def save(number, _):
  signal.signal(number, signal.SIG_IGN)
  sys.exit(print("saved") or 143)
signal.signal(signal.SIGTERM, save)
print("up")
time.sleep(30)
"""
DOCS = (ROOT / "docs/launch.md").read_text()


def bash(*command, **variables):
  """Runs one launcher to its end: (exit code, stdout, stderr)."""
  done = subprocess.run(
    ["bash", *map(str, command)],
    cwd=ROOT,
    env=os.environ | variables,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


def dry(script, *args, **variables):
  """The commands that the dry mode prints, as words."""
  code, out, err = bash(f"launch/{script}", *args, DRY_RUN="1", **variables)
  assert (code, err) == (0, "")
  return [shlex.split(line) for line in out.splitlines()]


def stand_in(folder, name, script):
  """A program of that name in front of the real ones; returns the PATH."""
  (folder / name).write_text(f"#!/bin/bash\n{script}\n")
  (folder / name).chmod(0o755)
  return f"{folder}:{os.environ['PATH']}"


# Lint.


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_and_bash_parse_it(script):
  assert bash("-n", f"launch/{script}") == (0, "", "")
  linter = pathlib.Path(sys.executable).with_name("shellcheck")
  lint = subprocess.run([linter, ROOT / "launch" / script], capture_output=True, text=True)
  assert (lint.returncode, lint.stdout) == (0, "")


def test_every_launcher_is_linted_and_in_the_docs():
  files = {path.name for path in (ROOT / "launch").iterdir()}
  assert files == {*SCRIPTS, "gke_jobset.yaml"}
  assert [name for name in files if f"launch/{name}" not in DOCS] == []


# launch/local.sh.


def test_local_dry_mode_prints_what_would_be_started():
  lines = dry("local.sh", 2, "python", "-c", "print('a b')")
  for i, line in enumerate(lines):
    given = dict(word.split("=", 1) for word in line[:5])
    assert processes.explicit(given) == {
      "coordinator_address": lines[0][0].partition("=")[2],
      "num_processes": 2,
      "process_id": i,
    }
    assert line[5:] == ["python", "-c", "print('a b')"]


def test_local_gives_each_process_its_variables():
  code, out, err = bash("launch/local.sh", 3, "bash", "-c", 'echo "$0 ${!JAX_*}"; env', "a b")
  lines = [re.fullmatch(r"\[(\d)\] (.*)", line).groups() for line in out.splitlines()]
  assert code == 0
  assert len(re.findall(r"^\[\d\] pid \d+$", err, re.MULTILINE)) == 3
  for i in "012":
    mine = [line for index, line in lines if index == i]
    given = dict(line.split("=", 1) for line in mine if "=" in line)
    assert mine[0].startswith("a b ")
    assert (given["JAX_PROCESS_ID"], given["JAX_NUM_PROCESSES"]) == (i, "3")
    assert given["JAX_LOCAL_DEVICE_IDS"] == i
  assert len({line for _, line in lines if line.startswith("JAX_COORDINATOR_ADDRESS")}) == 1


@pytest.mark.parametrize(
  ("codes", "code"), [("0 0 0", 0), ("0 7 0", 7), ("0 3 2", 2), ("143 143 143", 143)]
)
def test_local_exits_with_the_first_code_that_is_not_0(codes, code):
  # Each ends a second before the one in front of it.
  script = f'codes=({codes}); sleep $((2 - JAX_PROCESS_ID)); exit "${{codes[JAX_PROCESS_ID]}}"'
  assert bash("launch/local.sh", 3, "bash", "-c", script)[0] == code


def test_local_waits_for_the_others_of_a_killed_process():
  script = "((JAX_PROCESS_ID)) && kill -KILL $$; sleep 1; echo done"
  code, out, _ = bash("launch/local.sh", 2, "bash", "-c", script)
  assert (code, out) == (128 + signal.SIGKILL, "[0] done\n")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", [os.kill, os.killpg], ids=["launcher", "group"])
def test_local_forwards_signals_as_sigterm(sent, to):
  launcher = subprocess.Popen(
    ["bash", "launch/local.sh", "3", sys.executable, "-c", SAVES],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
    # As in a terminal: what runs in the background inherits that SIGINT is ignored.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
  )
  up = [launcher.stdout.readline() for _ in range(3)]
  assert sorted(up) == ["[0] up\n", "[1] up\n", "[2] up\n"]
  to(launcher.pid, sent)
  out, _ = launcher.communicate(timeout=30)
  assert sorted(out.splitlines()) == ["[0] saved", "[1] saved", "[2] saved"]
  assert launcher.returncode == 128 + signal.SIGTERM


def test_local_takes_its_processes_with_it_when_it_is_killed():
  """As by `timeout -s KILL`."""
  if subprocess.run(["setpriv", "--pdeathsig", "TERM", "true"], check=False).returncode:
    pytest.skip("no setpriv that knows --pdeathsig")
  launcher = subprocess.Popen(
    ["bash", "launch/local.sh", "2", sys.executable, "-c", SAVES],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert sorted(launcher.stdout.readline() for _ in range(2)) == ["[0] up\n", "[1] up\n"]
  launcher.kill()
  out, _ = launcher.communicate(timeout=20)  # the output ends when the last process does
  assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]


@pytest.mark.parametrize("args", [(), ("0", "true"), ("x", "true"), ("2",)], ids=str)
def test_local_says_how_it_is_used(args):
  code, _, err = bash("launch/local.sh", *args)
  assert code == BAD_INPUT
  assert err.startswith("usage: launch/local.sh N COMMAND")


# launch/tpu_pod.sh.


def test_tpu_creates_and_deletes_a_slice():
  place = {"NAME": "mine", "ZONE": "us-central2-b"}
  kind = {"TYPE": "v4-32", "VERSION": "tpu-ubuntu2204-base"}
  tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
  what = ["--accelerator-type=v4-32", "--version=tpu-ubuntu2204-base"]
  where = "--zone=us-central2-b"
  assert dry("tpu_pod.sh", "create", **place, **kind) == [[*tpu, "create", "mine", *what, where]]
  spot = [*tpu, "create", "mine", *what, "--spot", where]
  assert dry("tpu_pod.sh", "create", SPOT="1", **place, **kind) == [spot]
  assert dry("tpu_pod.sh", "delete", **place) == [[*tpu, "delete", "mine", "--quiet", where]]


def test_tpu_installs_the_commit_on_every_worker():
  archive, copy, install = dry("tpu_pod.sh", "install")
  assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
  assert copy[4] == "scp" and f"--output={copy[5]}" == archive[2]
  for line in (copy, install):
    assert "--worker=all" in line
  assert "pip install --quiet -c requirements.txt 'jax[tpu]' -e ." in install[-2]


def test_tpu_runs_the_flags_as_they_were_given(tmp_path):
  """Through two shells, the worker's and the one that outlives the connection."""
  home = tmp_path / "home"
  (home / "jaxunlearn/.venv/bin").mkdir(parents=True)
  worker = 'for arg; do case $arg in --command=*) cd "$HOME" && bash -c "${arg#*=}";; esac; done'
  path = stand_in(tmp_path, "gcloud", worker)
  stand_in(home / "jaxunlearn/.venv/bin", "python", "printf '<%s>\\n' \"$@\"; exit 3")
  run = ("launch/tpu_pod.sh", "run", *FLAGS)
  assert bash(*run, PATH=path, HOME=str(home)) == (0, "", "")
  log, deadline = home / "jaxunlearn.log", time.monotonic() + 30
  while "exit code" not in log.read_text() and time.monotonic() < deadline:
    time.sleep(0.05)
  words = ["-m", "jaxunlearn.main", "--distributed=on", *FLAGS]
  assert log.read_text().splitlines() == [*(f"<{word}>" for word in words), "exit code 3"]


def test_tpu_follows_stops_and_runs_anything():
  assert "--worker=2" in dry("tpu_pod.sh", "logs", WORKER="2")[0]
  (stop,) = dry("tpu_pod.sh", "stop")
  assert "--worker=0" in stop
  pattern = shlex.split(stop[-2].partition("=")[2])[-1]
  assert re.match(pattern, ".venv/bin/python -m jaxunlearn.main --config=x")
  assert not re.match(pattern, "bash -c cd jaxunlearn; .venv/bin/python -m jaxunlearn.main")
  (anything,) = dry("tpu_pod.sh", "on_all", "sudo", "mount", "10.0.0.2:/runs", "/mnt")
  assert "--worker=all" in anything and "--command=sudo mount 10.0.0.2:/runs /mnt" in anything
  assert bash("launch/tpu_pod.sh", "stat")[0] == BAD_INPUT


# launch/slurm.sbatch.


def test_slurm_dry_mode_prints_the_step():
  (line,) = dry("slurm.sbatch", *FLAGS)
  assert line[0].startswith("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true")
  assert line[1] == "srun"
  assert line[-6:] == ["python", "-m", "jaxunlearn.main", *FLAGS]


def test_slurm_asks_for_an_early_signal_and_for_requeue():
  text = (ROOT / "launch/slurm.sbatch").read_text()
  options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
  assert options["signal"] == "TERM@300"
  assert options["requeue"] == "" and options["open-mode"] == "append"
  assert options["ntasks-per-node"] == options["gpus-per-node"]
  assert text.index("#SBATCH") < text.index("set -e")  # SLURM reads none after a command


@pytest.mark.parametrize(
  ("code", "restarts", "again"),
  [
    (0, 0, False),
    (1, 0, False),
    (BAD_INPUT, 0, False),
    (3, 0, False),
    (PROCESS_LOST, 0, True),
    (134, 0, True),
    (137, 0, True),
    (143, 1, True),
    (143, 2, False),
  ],
)
def test_slurm_queues_again_what_can_go_on(tmp_path, code, restarts, again):
  # The job's own signal reaches the shell too, which has to live until srun has ended.
  stand_in(tmp_path, "srun", f"kill -TERM $PPID; exit {code}")
  path = stand_in(tmp_path, "scontrol", 'echo "scontrol $*"')
  job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "MAX_RESTARTS": "2"}
  got, out, err = bash("launch/slurm.sbatch", *FLAGS, PATH=path, **job)
  assert (got, err) == (code, "")
  assert ("scontrol requeue 7" in out) == again
