"""`--dry_run`: what a run would be and what one of its steps costs, as XLA reports it."""

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from jaxunlearn import step, train


def describe(config: ConfigDict) -> str:
  """The resolved config, parameters, passes, and one step's FLOPs and memory; runs no step.

  Raises:
    ValueError: bad input, or a config that lists runs.
  """
  if "runs" in config:
    raise ValueError(
      f"this config lists {len(config.runs)} runs; --dry_run takes the config of one"
    )
  setup = train.build(config)
  shapes = jax.eval_shape(setup.net.init, jax.random.key(0))
  params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  state = train.make_state(setup, params)
  rng, batch = jax.random.key(0), setup.host_batch(0)
  draws = jax.eval_shape(
    lambda b: setup.method.draw(setup.process, b, rng, state.extras, state.step), batch
  )
  program = step.Gradients(setup).lower(state.params, draws, state.extras).compile()
  memory, method, steps = program.memory_analysis(), setup.method, config.train
  flops = program.cost_analysis()["flops"] * setup.mesh.size * steps.micro_batches
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  gib = lambda size: f"{size / 2**30:.3f} GiB"
  lines = {
    "devices": f"{setup.mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(setup.mesh.shape)}",
    "parameters": f"{parameter_overview.count_parameters(params):,}",
    "records": f"{len(setup.train):,} to train on, {int(setup.forget.sum()):,} of them to forget; "
    f"{len(setup.heldout):,} held out",
    "steps": f"{steps.steps} of {steps.batch} rows in {steps.micro_batches} micro-batches",
    "passes of a step": f"{method.forwards} forward and at most {method.backwards} backward",
    "FLOPs of a step": f"{flops:.4g} (every pass of every row)",
    "memory of a step": f"state {gib(size)} over all devices; of one micro-batch, per device: "
    f"{gib(memory.argument_size_in_bytes)} arguments, {gib(memory.output_size_in_bytes)} outputs, "
    f"{gib(memory.temp_size_in_bytes)} temporaries",
  }
  width = max(map(len, lines))
  return f"{config}\n" + "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())
