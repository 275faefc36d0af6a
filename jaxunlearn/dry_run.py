"""`--dry_run`: what a run would be and what one of its steps costs, as XLA reports it."""

from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from jaxunlearn import sharding, train


def describe(config: ConfigDict) -> str:
  """The resolved config, parameters, passes, and one step's FLOPs and memory; runs no step."""
  setup = train.build(config)
  shapes = jax.eval_shape(setup.net.init, jax.random.key(0))
  params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
  state = train.make_state(setup, params)
  batch = setup.host_batch(0)
  step = train.make_update(setup, state)
  spec = jax.tree.map(_spec, (state, sharding.put(batch, sharding.batch_sharding(setup.mesh))))
  compiled = step.lower(*spec).compile()
  memory, method, steps = compiled.memory_analysis(), setup.method, config.train
  gib = lambda size: f"{size / 2**30:.3f} GiB"
  lines = {
    "devices": f"{setup.mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(setup.mesh.shape)}",
    "parameters": f"{parameter_overview.count_parameters(params):,}",
    "records": f"{len(setup.train):,} to train on, {int(setup.forget.sum()):,} of them to forget; "
    f"{len(setup.heldout):,} held out",
    "steps": f"{steps.steps} of {steps.batch} rows in {steps.micro_batches} micro-batches",
    "passes of a step": f"{method.forwards} forward and at most {method.backwards} backward",
    "FLOPs of a step": f"{_flops(setup, params, state.extras):.4g} (whole batch, every pass taken)",
    "memory of a step": f"{gib(memory.argument_size_in_bytes)} arguments, "
    f"{gib(memory.temp_size_in_bytes)} temporaries, per device",
  }
  width = max(map(len, lines))
  return f"{config}\n" + "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _flops(setup: train.Setup, params: Any, extras: Any) -> float:
  """Of the K gradients of the whole batch at once: XLA counts the body of a scan only once."""
  with setup.config.unlocked():
    whole = setup.config.copy_and_resolve_references()
  whole.train.micro_batches = 1
  grads = train.make_grads(train.build(whole))
  draw = lambda batch, rng: setup.method.draw(setup.process, batch, rng, extras)
  draws = jax.eval_shape(draw, setup.host_batch(0), jax.random.key(0))
  cost = jax.jit(grads).lower(params, draws, extras).cost_analysis()
  return cost["flops"]


def _spec(leaf: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
