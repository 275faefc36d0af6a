"""What a launch compiled is there for the next one, and only on a CPU of the same kind."""

import os
import subprocess
import sys

import jax
import pytest

from jaxunlearn.mesh import programs

CODE = """
import pathlib, sys, jax
from jaxunlearn.mesh import programs
programs.keep(pathlib.Path(sys.argv[1]))
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: x @ x + 1).lower(jax.numpy.ones((3, 3))).compile()
"""


@pytest.mark.parametrize("given", [False, True])
def test_a_cpu_keeps_its_programs_among_the_users_files(tmp_path, given):
  env = os.environ | {"JAXUNLEARN_CACHE": str(tmp_path / "home")}
  env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  if given:
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "said")
  command = [sys.executable, "-c", CODE, str(tmp_path / "run")]
  ended = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
  expected = tmp_path / "said" if given else tmp_path / "home" / "programs" / programs.kind_of_cpu()
  assert ended.stdout.strip() == str(expected) and any(expected.iterdir())
  assert not (tmp_path / "run").exists()


def test_kinds_of_cpus_are_told_apart_by_what_they_can_do(tmp_path):
  file = tmp_path / "cpuinfo"
  file.write_text(
    "processor: 0\nmodel name: A\nflags: avx\nprocessor: 1\nmodel name: A\nflags: avx\n"
  )
  kind = programs.kind_of_cpu(file)
  file.write_text("processor: 0\nmodel name: A\nMHz: 3\nflags: avx\n")
  assert programs.kind_of_cpu(file) == kind
  file.write_text("processor: 0\nmodel name: A\nflags: avx avx2\n")
  assert programs.kind_of_cpu(file) != kind
  assert len(programs.kind_of_cpu(tmp_path / "none")) == 12


def test_programs_are_dropped_before_they_use_up_the_memory_maps(tmp_path):
  double = jax.jit(lambda x: 2 * x)
  double(1.0)
  maps = tmp_path / "maps"
  maps.write_bytes(b"a line\n" * programs.MOST)
  assert not programs.drop_if_many(maps) and double._cache_size() == 1
  maps.write_bytes(b"a line\n" * (programs.MOST + 1))
  assert programs.drop_if_many(maps) and double._cache_size() == 0
  assert double(2.0) == 4
  assert not programs.drop_if_many(tmp_path / "none")
