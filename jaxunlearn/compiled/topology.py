"""A step on TPUs that are not there: compiled ahead of time for a named topology, and its cost.

libtpu holds the compiler of every TPU; `pip install -e ".[tpu]"` brings it to any Linux machine.
What it says of memory, FLOPs and collectives is of the program that a TPU would run. Nothing is
put on a device and nothing runs: the state and the batch are shapes and layouts.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from jaxunlearn import build, methods, models, step
from jaxunlearn.checkpoint import State
from jaxunlearn.compiled import collectives
from jaxunlearn.errors import check_choice
from jaxunlearn.mesh import sharding
from jaxunlearn.models.text_to_image import ENCODED_ONCE

Tree = Any
GIB = 2**30
RESERVED = 0.25  # GiB of a device that XLA does not give to programs


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of TPUs; a device is a chip, or one of its cores where `megacore` is not."""

  hbm: int  # GiB a device has
  megacore: bool = False  # both cores of a chip are one device


CHIPS = {
  "v2": Chip(8),
  "v3": Chip(16),
  "v4": Chip(32, megacore=True),
  "v5e": Chip(16),
  "v5p": Chip(95, megacore=True),
  "v6e": Chip(32),
}
# libtpu looks for a TPU and its host's metadata unless these tell it that there are none; two
# processes may compile at once, as they share no TPU.
_ALONE = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


def chip(name: str) -> Chip:
  """The chip of a topology like v5e:2x4; raises ValueError for a name that is none."""
  match = re.fullmatch(r"(\w+):\d+(x\d+){1,2}", name)
  if not match:
    raise ValueError(f"no topology {name!r}; use CHIP:SIDES like v5e:2x4 or v4:2x2x2")
  check_choice("TPU", match[1], CHIPS)
  return CHIPS[match[1]]


def devices(name: str) -> Sequence[Any]:
  """The devices of a topology by name, to compile for. To be called before JAX finds devices.

  Raises:
    ValueError: no such topology, or no libtpu.
  """
  options = {"chip_config_name": "megacore"} if chip(name).megacore else {}
  for variable, value in _ALONE.items():
    os.environ.setdefault(variable, value)
  jax.config.update("jax_platforms", "cpu")
  try:
    return topologies.get_topology_desc(name, platform="tpu", **options).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"no topology {name!r} ({str(error).splitlines()[0]}); use CHIP:SIDES like v5e:2x4"
    ) from error
  except RuntimeError as error:
    raise ValueError(
      f'topology {name!r} needs the TPU compiler, libtpu; run pip install -e ".[tpu]"'
    ) from error


def setup_on(config: ConfigDict, name: str) -> build.Setup:
  """The run of a config on that topology; raises ValueError as `build.build` does."""
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices(name))
  if "sources" not in config:
    sharding.check_batch(config.train.batch, config.train.micro_batches, mesh)
  here = config.copy_and_resolve_references()
  here.mesh.update(data=1, fsdp=1)
  setup = build.build(here)
  here.mesh.update(mesh.shape)
  return dataclasses.replace(setup, mesh=mesh)


def state_of(setup: build.Setup) -> State:
  """The shapes and layouts of step 0. What a method prepares is computed here, from zeros."""
  whole = build.with_prefix(setup, models.shapes(setup.net))
  params, frozen = jax.eval_shape(setup.split, whole)
  extras: Tree = {}
  if type(setup.method).prepare is not methods.Objective.prepare:
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), (params, frozen))
    apply, key = setup.predictor(zeros[1]).bound(zeros[1]), jax.random.key(0)
    extras = setup.method.prepare(apply, zeros[0], setup.process, setup.streams, key)
  number: Any = jax.ShapeDtypeStruct((), jnp.int32)
  state = State(
    step=number,
    params=params,
    ema=params if setup.config.ema else {},
    opt=jax.eval_shape(setup.tx.init, params),
    extras=extras,
    frozen=frozen,
  )
  return sharding.shaped(setup.mesh, state)


def batch_of(setup: build.Setup) -> methods.Batch:
  """The shapes and layouts of a batch of the run's streams; nothing is encoded for it."""
  size, image = setup.config.train.batch, np.zeros((1, *setup.net.image_shape), np.float32)
  of_pixels = {k: dataclasses.replace(s, moments=None) for k, s in setup.streams.items()}
  rows = {k: s.at(0, np.arange(1))._replace(image=image) for k, s in of_pixels.items()}
  whole = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), rows)
  return sharding.shaped(setup.mesh, whole, sharding.batch_sharding(setup.mesh))


def held(tree: Tree) -> int:
  """The bytes of a tree (of arrays, or of shapes and layouts) on each device."""
  size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(map(size, jax.tree.leaves(tree)))


class Cost(NamedTuple):
  """What a program costs each device: bytes of memory, and of one run FLOPs and collectives."""

  arguments: int
  outputs: int  # that do not take an argument's place
  temporaries: int
  resident: int  # what the run holds while the program runs, besides its arguments
  flops: float
  collectives: dict[str, collectives.Total]
  loops: int = 0  # of unknown length: with any, the collectives are at least these
  uncounted: int = 0  # loops of which the FLOPs are those of one turn
  runs: int = 1  # in a step

  @property
  def memory(self) -> int:
    return self.arguments + self.outputs + self.temporaries + self.resident

  @property
  def moved(self) -> float:
    """Bytes that each device sends in a step."""
    return self.runs * sum((total.moved for total in self.collectives.values()), start=0.0)


def cost(program: jax.stages.Compiled, resident: int = 0, runs: int = 1) -> Cost:
  """A compiled program's cost, as its compiler reports it."""
  memory: Any = program.memory_analysis()
  analysis: Any = program.cost_analysis()
  text = program.as_text() or ""
  return Cost(
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    resident=resident,
    flops=analysis.get("flops", 0.0),
    collectives=collectives.totals(text),
    loops=collectives.open_loops(text),
    uncounted=collectives.uncounted_loops(text),
    runs=runs,
  )


def step_costs(setup: build.Setup, batch: methods.Batch) -> Iterator[tuple[str, Cost]]:
  """Each program of a step by name, compiled one after the other.

  Raises:
    OutOfMemory: the compiler finds no place for a program.
  """
  state, micro_batches = state_of(setup), setup.config.train.micro_batches
  unread = state.frozen.get("text_encoder", {}) if ENCODED_ONCE in state.frozen else {}
  # Besides its arguments: the state, and while a step runs its batch, its draws and their parts.
  rest = {
    "draw": (state.params, state.ema, state.opt),
    "split": (state, batch),
    "gather": (state.ema, state.opt, state.extras, batch, batch),
    "gradients": (state.ema, state.opt, batch, batch, unread),
    "update": (batch, batch, batch),
  }
  if step.program(setup).gather_once:
    rest["gradients"] += (state.params, state.frozen)
  programs = step.compile_programs(setup, state, batch)
  with fitting():
    for name, program in programs:
      yield name, cost(program, held(rest[name]), micro_batches if name == "gradients" else 1)


class OutOfMemory(ValueError):
  """A program that a device has not the memory for."""


@contextlib.contextmanager
def fitting() -> Iterator[None]:
  """Raises OutOfMemory where the compiler runs out of a device's memory, with its own figures."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r"Used (\S+) of (\S+) hbm", str(error))
    if not used:
      raise
    raise OutOfMemory(
      f"a program needs {used[1]} of {used[2]} of a device's memory; use more micro_batches, "
      "model.dtype bfloat16 or more devices"
    ) from error


def least(setup: build.Setup) -> float:
  """Bytes that each device sends at least in a step (collectives.py)."""
  whole = build.with_prefix(setup, models.shapes(setup.net))
  trained, _ = jax.eval_shape(setup.split, whole)
  all_, moved = (sum(s.size for s in jax.tree.leaves(tree)) for tree in (whole, trained))
  summed = jnp.dtype(getattr(setup.net, "dtype", jnp.float32)).itemsize
  gradients = len(setup.method.terms)
  return collectives.minimum(all_, gradients, summed, **setup.mesh.shape, trained=moved)


def lines(setup: build.Setup, name: str) -> dict[str, str]:
  """The report of a step on that topology: each program, then the step."""
  costs = dict(step_costs(setup, batch_of(setup)))
  peak, hbm = max(one.memory for one in costs.values()), chip(name).hbm
  moved = sum(one.moved for one in costs.values())
  flops = sum(one.flops * one.runs for one in costs.values())
  bound = lambda field: "at least " if any(getattr(one, field) for one in costs.values()) else ""
  verdict = "fits" if fits(peak, hbm) else "does NOT fit"
  return {
    **{f"program {name}": _line(one) for name, one in costs.items()},
    "memory of a device": f"{verdict}: {peak / GIB:.2f} of {hbm:g} GiB",
    "FLOPs of a step": f"{bound('uncounted')}{flops:.4g} a device (every pass of every row)",
    "sent in a step": f"{bound('loops')}{moved / GIB:.3f} GiB a device; "
    f"ZeRO-3 needs {least(setup) / GIB:.3f}",
  }


def fits(memory: float | int, hbm: int) -> bool:
  """Whether so many bytes fit a device, of which the TPU's runtime keeps some."""
  return memory <= (hbm - RESERVED) * GIB


def together(costs: Iterable[Cost]) -> dict[str, collectives.Total]:
  """kind -> the collectives of a whole step."""
  out: dict[str, collectives.Total] = {}
  for one in costs:
    for kind, total in one.collectives.items():
      out[kind] = out.get(kind, collectives.Total()).plus(total, one.runs)
  return out


def _line(one: Cost) -> str:
  parts = ("arguments", "outputs", "temporaries", "resident")
  memory = ", ".join(f"{getattr(one, part) / GIB:.3f} {part}" for part in parts)
  kinds = [f"{t.count} {kind} {t.size / GIB:.3f}" for kind, t in one.collectives.items()]
  return (
    f"{one.runs} a step; GiB of memory: {memory}; {one.flops:.4g} FLOPs; collectives and GiB of "
    f"results: {', '.join(kinds) or 'none'}"
  )
