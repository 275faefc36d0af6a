"""The cores of a CPU as devices.

One device over all cores leaves some of them idle in a small network, whose operations are too
short to be split. Each device holds the whole state: where memory is short, take
JAX_NUM_CPU_DEVICES=1, or split it (config.mesh.data=1, config.mesh.fsdp=-1).
"""

import math
import os
from collections.abc import Mapping, Sequence

import jax
from ml_collections import ConfigDict

from jaxunlearn.diffusion import EpsFn
from jaxunlearn.mesh import processes, sharding

MOST = 8
LARGEST = 2**28  # bytes of a predictor


def as_devices(*rows: int) -> None:
  """Makes each core a device, as many as divide every one of `rows`, the rows of a batch.

  Nothing happens where something else says how many devices a CPU is: JAX_NUM_CPU_DEVICES, the flag
  of XLA, or a launcher of several processes. To be called before JAX has devices; GPUs and TPUs are
  what they are.
  """
  if count := number(rows, os.environ, available()):
    jax.config.update("jax_num_cpu_devices", count)


def available() -> int:
  """How many cores this process may use; all of them where the system does not say (no Linux)."""
  ask = getattr(os, "sched_getaffinity", None)
  return len(ask(0)) if ask else os.cpu_count() or 1


def rows_of(config: ConfigDict) -> list[int]:
  """What each run of a config takes at a time in a step; of bad fields nothing, `check` tells."""
  runs = config.get("runs")
  each = runs.values() if isinstance(runs, ConfigDict) else [config]
  trains = [run.get("train") for run in each if isinstance(run, ConfigDict)]
  given = [(t.get("batch"), t.get("micro_batches")) for t in trains if isinstance(t, ConfigDict)]
  whole = lambda n: isinstance(n, int) and n > 0
  return [batch // micro for batch, micro in given if whole(batch) and whole(micro)]


def number(rows: Sequence[int], environment: Mapping[str, str], cores: int) -> int:
  """How many devices: a power of two; 0: as the environment says."""
  said = "JAX_NUM_CPU_DEVICES" in environment
  said |= "host_platform_device_count" in environment.get("XLA_FLAGS", "")
  if said or processes.launched(environment):
    return 0
  return math.gcd(2 ** int(math.log2(min(cores, MOST))), *rows)


def spread(eps_fn: EpsFn) -> EpsFn:
  """The same noise predictor, a pytree, its rows over all devices of this process.

  On a CPU one with more than LARGEST bytes stays where it is, since each device would hold it.
  """
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(eps_fn))
  if jax.default_backend() == "cpu" and size > LARGEST:
    return eps_fn
  return sharding.over_devices(eps_fn)
