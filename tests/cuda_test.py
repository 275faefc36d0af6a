"""Lowered for CUDA on this CPU: the whole step of every method, and sampling from compartments.

Lowering fails where an operation has no rule for the platform. Compiling and running take a GPU.
What docs/launch.md and requirements-gpu.txt say of GPUs is checked here too.
"""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn import build, methods, models, step
from jaxunlearn.cdm import compose
from jaxunlearn.cdm.routers import kmeans
from jaxunlearn.diffusion import Diffusion, sampling
from tests import nets, tiny_config

ROOT = pathlib.Path(__file__).parent.parent
CONDITIONAL = nets.Attentive(classes=(11,))  # ten digits and the T-shirt
STREAMS = {
  "x": "retain",
  "all": "all",
  "a": {"take": "forget", "to": "next"},
  "alt": {"take": "retain", "c": "forget", "to": "own"},
}
# On a network without prompts.
METHODS = [n for n in methods.names() if not {"token", "text"} & {*methods.make(n).needs}]
UVIT = {"sample_size": 28, "in_channels": 1, "patch_size": 7, "width": 32, "depth": 2, "heads": 4}


def setup_of(method, data=1, fsdp=1, dtype="float32"):
  config = tiny_config.get_config(method)
  config.mesh.update(data=data, fsdp=fsdp)
  config.model.dtype = dtype
  return build.build(config)


def conditional_setup(method):
  config = tiny_config.get_config(method)
  config.mesh.data, config.model.classes = 1, CONDITIONAL.classes
  config.streams = STREAMS
  return dataclasses.replace(build.build(config), net=CONDITIONAL)


def export(function, *args):
  return jax.export.export(jax.jit(function), platforms=["cuda"])(*args)


def exported_step(setup):
  """One update as one program for CUDA: draws, gradients of every term, optimiser, EMA."""
  program = step.program(setup)
  state = build.make_state(setup, nets.random_params(setup.net))
  leaves, structure = jax.tree.flatten((state, setup.batch(0)))

  def update(leaves):
    state, batch = structure.unflatten(leaves)
    draws = step.draw(program, setup.config.seed, state.step, batch, state.extras)
    rows, needed = step._split(program, draws)[0][0], (True,) * len(setup.method.terms)
    gradients = step._add(program, None, state.params, rows, state.extras, {}, needed=needed)
    return jax.tree.leaves(step.apply_update(program, state, *gradients)[0])

  return state, export(update, leaves)


def assert_for_cuda(exported, shapes, devices=1):
  """Serialised and read back it gives those shapes, on so many GPUs and on nothing else."""
  back = jax.export.deserialize(exported.serialize())
  assert back.platforms == ("cuda",)
  assert back.nr_devices == devices
  shape = lambda leaf: (leaf.shape, leaf.dtype)
  assert [*map(shape, back.out_avals)] == [*map(shape, jax.tree.leaves(shapes))]


@pytest.mark.parametrize("method", METHODS)
def test_the_step_of_every_method(method):
  state, exported = exported_step(conditional_setup(method))
  assert_for_cuda(exported, state)


@pytest.mark.parametrize(("method", "dtype"), [("denoising", "float32"), ("siss", "bfloat16")])
def test_the_unet_on_eight_gpus(method, dtype):
  state, exported = exported_step(setup_of(method, data=2, fsdp=4, dtype=dtype))
  assert_for_cuda(exported, state, devices=8)
  assert ("bf16" in exported.mlir_module()) == (dtype == "bfloat16")


def test_the_u_vit():
  setup = dataclasses.replace(setup_of("siss"), net=models.make("uvit", **UVIT))
  state, exported = exported_step(setup)
  assert_for_cuda(exported, state)


@functools.cache
def compartments():
  """Three U-ViTs and the centroids of their sources."""
  net, router = models.make("uvit", **UVIT), kmeans.Router(k=2, pool=7)
  stack = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), tree)
  part = {"center": jnp.zeros((2, 16)), "variance": jnp.ones(2), "log_share": jnp.zeros(2)}
  parts = compose.Compartments(tuple("abc"), (1, 2, 3), stack(nets.random_params(net)), stack(part))
  return net, router, parts


@pytest.mark.parametrize("mode", compose.MODES)
def test_samples_of_a_composition(mode):
  net, router, parts = compartments()
  process, x_T = Diffusion(), jnp.zeros((4, *net.image_shape))
  eps_fn = compose.compose(net.apply, parts, router, process, compose.Mode(mode))
  leaves, structure = jax.tree.flatten(eps_fn)

  def sample(leaves, x_T, seed):
    eps_fn = structure.unflatten(leaves)
    return sampling.ddim(eps_fn, process, jax.random.key(seed), x_T, steps=3)

  assert_for_cuda(export(sample, leaves, x_T, 0), x_T)


def test_what_is_exported_is_refused_on_a_cpu():
  with pytest.raises(ValueError, match=r"cuda.*cpu"):
    export(jnp.sin, 1.0).call(1.0)


def test_what_cuda_has_no_rule_for_is_seen():
  with pytest.raises(NotImplementedError, match="cuda"):
    export(jax.scipy.linalg.schur, jnp.eye(3))


def test_xla_has_every_flag_that_the_docs_name():
  docs = (ROOT / "docs/launch.md").read_text()
  named = sorted(set(re.findall(r"--xla_gpu_\w+=[\w.]+", docs)))
  assert len(named) > 3
  assert accepted(*named) == (0, "")
  code, err = accepted("--xla_gpu_no_such_flag=true")
  assert code and "Unknown flag" in err


def accepted(*flags):
  """(exit code, stderr) of a process that starts a backend with those flags."""
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  env = os.environ | {"XLA_FLAGS": " ".join(flags)}
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  return done.returncode, done.stderr


def test_the_gpu_requirements_are_the_tested_versions():
  version = re.search(r"^jax==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
  lines = (ROOT / "requirements-gpu.txt").read_text().splitlines()
  assert [line for line in lines if not line.startswith("#")] == [f"jax[cuda12]=={version}"]
