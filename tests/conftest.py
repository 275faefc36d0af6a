"""Tests run on 8 virtual CPU devices, with types and shapes of signatures enforced."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib

import jaxtyping
import pytest

# Read by JAX when it is imported; the runs that tests launch inherit them, compiled code included.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# The threads of PyTorch wait busily: beside another process a picture took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# To compile what is this small takes longer than to run it: the plainest code, in a fifth of the
# time (the gradient of tiny_unet.py: 6.3 s of CPU time to 1.2 s).
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib") < "0.12":  # 0.12 lacks it, and ends the process
  FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

jaxtyping.install_import_hook("jaxunlearn", "beartype.beartype")

import jax  # noqa: E402


def pytest_addoption(parser):
  parser.addoption("--full-size", action="store_true", help="celeba_test.py at 256 px")


@pytest.fixture(autouse=True, scope="module")
def _no_more_programs_than_a_module_needs():
  """Thousands of compiled programs in one process would use up its memory, and its memory maps."""
  yield
  jax.clear_caches()
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed
