"""`--dry_run`: what a run would be and what one of its steps costs, as XLA reports it.

On the devices that are here, or on the TPUs of a named topology (topology.py).
"""

from typing import Any

import jax
from ml_collections import ConfigDict

from jaxunlearn import build, step
from jaxunlearn.compiled import topology


def describe(config: ConfigDict, name: str = "") -> str:
  """The resolved config, parameters, passes, and one step's FLOPs and memory; runs no step.

  Args:
    name: of the topology, like v5e:2x4; none: the devices that are here.

  Raises:
    ValueError: bad input, or a config that lists runs.
  """
  if "runs" in config:
    raise ValueError(
      f"this config lists {len(config.runs)} runs; --dry_run takes the config of one"
    )
  setup = topology.setup_on(config, name) if name else build.build(config)
  shapes = jax.eval_shape(setup.net.init, jax.random.key(0))
  method, steps = setup.method, setup.config.train
  kind = setup.mesh.devices.flat[0].device_kind
  lines = {
    "devices": f"{setup.mesh.size} x {kind}, mesh {dict(setup.mesh.shape)}",
    "parameters": f"{sum(s.size for s in jax.tree.leaves(shapes)):,}",
    "records": f"{len(setup.train):,} to train on, {int(setup.forget.sum()):,} of them to forget; "
    f"{len(setup.heldout):,} held out",
    "steps": f"{steps.steps} of {steps.batch} rows in {steps.micro_batches} micro-batches",
    "passes of a step": f"{method.forwards} forward and at most {method.backwards} backward",
    **(topology.lines(setup, name) if name else _here(setup)),
  }
  width = max(map(len, lines))
  return f"{setup.config}\n" + "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


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
    "memory of a step": f"state {gib(size)} over all devices; of one micro-batch, per device: "
    f"{gib(memory.argument_size_in_bytes)} arguments, {gib(memory.output_size_in_bytes)} outputs, "
    f"{gib(memory.temp_size_in_bytes)} temporaries",
  }
