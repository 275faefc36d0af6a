"""Tests run on 8 virtual CPU devices, with types and shapes of signatures enforced."""

import os
import pathlib
import tempfile

import jaxtyping

# Read by JAX when it is imported; the runs that tests launch inherit them, compiled code included.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
CACHE = pathlib.Path(tempfile.gettempdir()) / f"jaxunlearn-xla-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

jaxtyping.install_import_hook("jaxunlearn", "beartype.beartype")
