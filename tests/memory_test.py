"""Freed memory stays with a command's process."""

import ctypes
import os
import subprocess
import sys

from jaxunlearn.commands import guard
from jaxunlearn.mesh import memory

# The fewest pages that the kernel fills anew in a run of a program that works in 48 MiB.
FAULTS = """
import resource, sys
from jaxunlearn.mesh import memory
kept = sys.argv[1] == "kept" and memory.keep()
import jax, jax.numpy as jnp
work = jax.jit(lambda x: jnp.outer(x, x) @ jnp.outer(x, x + 1) @ x)
x = jnp.arange(2048.0)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
filled = []
for _ in range(10):
  before = faults()
  work(x).block_until_ready()
  filled.append(faults() - before)
print(kept, min(filled))
"""


def told(*words: str) -> list[str]:
  command = [sys.executable, "-c", FAULTS, *words]
  plain = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
  said = subprocess.run(command, env=plain, check=True, capture_output=True, text=True)
  return said.stdout.split()


def test_a_step_takes_the_memory_that_the_last_one_freed():
  """48 MiB are 12,288 pages."""
  kept, plain = told("kept"), told("plain")
  assert kept[0] == "True" and int(kept[1]) < 500
  assert plain[0] == "False" and int(plain[1]) > 10_000


def test_a_command_keeps_it_and_the_library_does_not_touch_it(monkeypatch):
  calls = []
  monkeypatch.setattr(memory, "keep", lambda: calls.append("keep"))
  import jaxunlearn

  jaxunlearn.method("siss")
  assert calls == []
  assert guard.guarded(lambda: None) == 0 and calls == ["keep"]


def test_where_malloc_takes_no_options_nothing_happens(monkeypatch):
  def absent(_):
    raise OSError("no C library")

  monkeypatch.setattr(ctypes, "CDLL", absent)
  assert not memory.keep()
