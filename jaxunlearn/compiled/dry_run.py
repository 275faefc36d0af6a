"""`--dry_run`: what a run would be and what one of its steps costs, as XLA reports it.

On the devices that are here, or on the TPUs of a named topology (topology.py).
"""

import datetime
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxunlearn import build, fields, latents, models, step
from jaxunlearn.compiled import topology
from jaxunlearn.latents import cache

CHEAP = 1e11  # FLOPs of a step that is run to be timed


def describe(config: ConfigDict, name: str = "") -> str:
  """The resolved config, parameters, passes, and one step's FLOPs, memory and seconds.

  Seconds are measured where a step is cheap, on the devices that are here; else no step is run.

  Args:
    name: of the topology, like v5e:2x4; none: the devices that are here.

  Raises:
    ValueError: bad input, or a config that lists runs.
  """
  if "runs" in config:
    raise ValueError(
      f"this config lists {len(config.runs)} runs; --dry_run takes the config of one"
    )
  if "autoencoder" in config:
    raise ValueError("--dry_run does not take the config of an autoencoder; run it without")
  setup = topology.setup_on(config, name) if name else build.build(config)
  shapes = models.shapes(setup.net)
  method, steps = setup.method, setup.config.train
  kind = setup.mesh.devices.flat[0].device_kind
  lines = {
    "devices": f"{setup.mesh.size} x {kind}, mesh {dict(setup.mesh.shape)}",
    "parameters": f"{sum(s.size for s in jax.tree.leaves(shapes)):,}",
    "records": f"{len(setup.train):,} to train on, {int(setup.forget.sum()):,} of them to forget; "
    f"{len(setup.heldout):,} held out",
    **_latents(setup),
    "steps": f"{steps.steps} of {steps.batch} rows in {steps.micro_batches} micro-batches",
    "passes of a step": f"{method.forwards} forward and at most {method.backwards} backward",
    **(topology.lines(setup, name) if name else _here(setup)),
  }
  width = max(map(len, lines))
  config = [f"config.{name} = {value!r}" for name, value in fields.leaves(setup.config, set())]
  return "\n".join([*config, "", *(f"{name:<{width}}  {text}" for name, text in lines.items())])


def _latents(setup: build.Setup) -> dict[str, str]:
  """What a run on latents has yet to encode."""
  if not isinstance(setup.codec, latents.Codec):
    return {}
  count, missing = len(setup.train), len(cache.missing(setup.codec, setup.train))
  return {"latents": f"{count - missing:,} of {count:,} pictures are encoded, in {cache.folder()}"}


def _seconds(setup: build.Setup, flops: float) -> str:
  """The second of two steps from random parameters, and what all steps would take."""
  if flops >= CHEAP:
    return f"not measured: over {CHEAP:.0e} FLOPs"
  if isinstance(setup.codec, latents.Codec):
    return "not measured: it would encode all pictures first"
  params = jax.jit(setup.net.init)(jax.random.key(0))
  state = build.make_state(setup, params)
  update, batches = step.make_update(setup, state), [setup.batch(i) for i in range(2)]
  state, _ = jax.block_until_ready(update(state, batches[0]))
  begun = time.perf_counter()
  jax.block_until_ready(update(state, batches[1]))
  seconds = time.perf_counter() - begun
  whole = datetime.timedelta(seconds=round(seconds * setup.config.train.steps))
  return f"{seconds:.2g} (measured); {whole} for all steps, without evaluations"


def _here(setup: build.Setup) -> dict[str, str]:
  """The step on this process' devices."""
  state = topology.state_of(setup)
  programs = dict(step.compile_programs(setup, state, topology.batch_of(setup)))
  program, micro_batches = programs["gradients"], setup.config.train.micro_batches
  memory: Any = program.memory_analysis()
  analysis: Any = program.cost_analysis()
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  flops = analysis["flops"] * setup.mesh.size * micro_batches
  gib = lambda size: f"{size / topology.GIB:.3f} GiB"
  return {
    "FLOPs of a step": f"{flops:.4g} (every pass of every row)",
    "seconds of a step": _seconds(setup, flops),
    "memory of a step": f"state {gib(size)} over all devices; of one micro-batch, per device: "
    f"{gib(memory.argument_size_in_bytes)} arguments, {gib(memory.output_size_in_bytes)} outputs, "
    f"{gib(memory.temp_size_in_bytes)} temporaries",
  }
