"""Compiled programs, kept: a second launch loads what the first one compiled."""

import gc
import hashlib
import os
import pathlib
import platform

import jax

from jaxunlearn import home

LEAST = 0.01  # seconds of compiling that are worth a file, on a CPU: loading one takes 0.002
MOST = 2**15  # memory maps of this process; Linux allows 65,530, and compiled programs are of many
MAPS = pathlib.Path("/proc/self/maps")


def keep(folder: pathlib.Path) -> None:
  """Keeps them in the folder, or where JAX_COMPILATION_CACHE_DIR says.

  Those of a CPU stay among this user's files, apart for each kind of CPU: they run on no other.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  if jax.default_backend() == "cpu":
    folder = home.folder() / "programs" / kind_of_cpu()
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
      jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)
  jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def drop_if_many(maps: pathlib.Path = MAPS) -> bool:
  """Drops the compiled programs where they take too many memory maps, and says whether it did.

  A process that makes hundreds of runs would end for want of maps. What a later run needs again is
  loaded from where `keep` keeps it.
  """
  try:
    count = maps.read_bytes().count(b"\n")
  except OSError:  # no Linux
    return False
  if count > MOST:
    jax.clear_caches()
    gc.collect()
  return count > MOST


def kind_of_cpu(path: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
  """A name for the instructions that this CPU has."""
  try:
    lines = path.read_text().splitlines()
  except OSError:  # no Linux
    lines = [platform.machine(), platform.processor()]
  told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
  return hashlib.sha256("\n".join(sorted(told or lines)).encode()).hexdigest()[:12]
