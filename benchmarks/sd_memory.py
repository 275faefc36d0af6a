"""What fits where: the memory of one SISS step of Stable Diffusion 1.4, by what is trained.

  python -m benchmarks.sd_memory --out=results     (the compiled rows: hours on a CPU)
  python -m benchmarks.sd_memory --row=NAME        (one row, as JSON)

Networks of version 1 at 512 px (latents of 64 x 64), prompts encoded in the step, AdamW, no EMA;
the frozen part and all that is trained are float32, and the dtype is that of the UNet's work.
Nothing runs. Rows are of two kinds:

    traced     an upper estimate for one GPU: state and batch, the gradients that a step holds, and
               all that the forward pass would keep for the backward pass as JAX traces it. XLA
               keeps less: of the CelebA-HQ and the U-ViT step of check_tpu.md the same estimate is
               2.3 and 1.3 times the temporaries of the compiled program.
    v5e, v5p   compiled ahead of time by the TPUs' compiler (check_tpu.py; needs libtpu), for the
               eight devices of a v5e-8, or for one device of 95 GiB
"""

import dataclasses
import functools
import itertools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np

from benchmarks import check_tpu
from configs import common
from jaxunlearn import adapters, build, methods, models, step
from jaxunlearn.compiled import topology
from jaxunlearn.mesh import sharding
from jaxunlearn.models.text_to_image import Book

TRACED, V5E, ONE = "traced", "v5e:2x4", "v5p:2x2x1"  # of the last, one device
TRAINED = {
  "LoRA": {"pattern": r"/attn[12]/to_", "rank": 4, "alpha": 4.0},
  "attn2": {"pattern": "attn2"},
  "UNet": {"pattern": "^unet/"},
}
BATCH, PROMPTS = 16, 2
CARDS = {"24 GB": 24e9, "80 GB": 80e9}
SPARE = 0.1  # of a GPU's memory: the driver's, and gaps


class Row(NamedTuple):
  """What is compiled, for what."""

  topology: str
  trained: str  # of TRAINED
  dtype: str
  micro_batches: int = 1
  remat: bool = False

  @property
  def name(self) -> str:
    return " ".join(map(str, self))


DTYPES = ("bfloat16", "float32")
ROWS = [
  *(
    Row(TRACED, trained, dtype, micro_batches)
    for trained, dtype, micro_batches in itertools.product(TRAINED, DTYPES, (1, 4))
  ),
  *itertools.starmap(Row, itertools.product([V5E, ONE], TRAINED, DTYPES)),
]


def setup_of(row: Row) -> build.Setup:
  """The run without its data and its files; ZeRO-3 over the devices."""
  config = common.get_config()
  config.method = common.method("siss", forget_norm=750.0)
  config.train.update(batch=BATCH, micro_batches=row.micro_batches)
  config.trained.update(TRAINED[row.trained])
  devices = jax.devices()[:1] if row.topology == TRACED else topology.devices(row.topology)
  return build.without_data(
    config=config,
    mesh=sharding.make_mesh(1, -1, devices if row.topology == V5E else devices[:1]),
    process=check_tpu.SD_PROCESS,
    net=models.make(
      "text_to_image",
      unet={"dtype": row.dtype, "remat": row.remat},
      classes=(PROMPTS,),
      book=Book(np.zeros((PROMPTS + 1, 77), np.int32)),
    ),
    method=methods.make(**config.method),
    trained=adapters.Trained(**config.trained),
  )


def kept(setup: build.Setup) -> dict[str, int]:
  """Bytes of a step on one device: state and batch, gradients, what waits for the backward pass."""
  state, batch = topology.state_of(setup), check_tpu.batch_of(setup)
  program, micro = step.program(setup), setup.config.train.micro_batches
  draws = jax.eval_shape(
    lambda state, batch: step.draw_rows(program, 0, state.step, batch, state.extras), state, batch
  )
  part = lambda s: jax.ShapeDtypeStruct((s.shape[0] // micro, *s.shape[1:]), s.dtype)

  def losses(params: Any, frozen: Any, rows: Any) -> Any:
    eps_fn = functools.partial(setup.predictor(frozen).bound(frozen), params)
    return setup.method.losses(eps_fn, setup.process, rows, {})[0]

  backward = lambda params, frozen, rows: jax.vjp(lambda p: losses(p, frozen, rows), params)[1]
  closed, pullback = jax.make_jaxpr(backward, return_shape=True)(
    state.params, state.frozen, jax.tree.map(part, draws)
  )
  made = {
    var
    for var in closed.jaxpr.outvars[-len(jax.tree.leaves(pullback)) :]
    if not isinstance(var, jax.extend.core.Literal)
  }
  size = lambda leaf: math.prod(leaf.shape) * leaf.dtype.itemsize
  trees = len(setup.method.terms) * (2 if micro > 1 else 1)
  return {
    "arguments": topology.held((state, batch)),
    "outputs": trees * topology.held(state.params),
    "temporaries": sum(size(var.aval) for var in made - set(closed.jaxpr.invars)),
  }


def measure(row: Row) -> dict[str, Any]:
  """A row's costs, in JSON's types; of a program that does not fit, what the compiler says."""
  start, setup = time.perf_counter(), setup_of(row)
  params, frozen = jax.eval_shape(setup.split, jax.eval_shape(setup.net.init, jax.random.key(0)))
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  out = {**row._asdict(), "parameters": count(params), "frozen": count(frozen), "error": ""}
  out["programs"] = {}
  if row.topology == TRACED:
    out["programs"]["gradients"] = topology.Cost(
      **kept(setup), resident=0, flops=0.0, collectives={}
    )._asdict()
    return {**out, "seconds": time.perf_counter() - start}
  out["hbm"] = topology.chip(row.topology).hbm
  try:
    for name, one in topology.step_costs(setup, check_tpu.batch_of(setup)):
      kinds = {kind: dataclasses.asdict(total) for kind, total in one.collectives.items()}
      out["programs"][name] = {**one._asdict(), "collectives": kinds}
  except topology.OutOfMemory as error:
    out["error"] = str(error)
  return {**out, "seconds": time.perf_counter() - start}


def markdown(done: dict[str, Any]) -> str:
  """A line a finished row: its program that needs most memory, and where it fits."""
  lines = [
    "| on | trained | parameters | UNet's work | rows at a time | blocks recomputed | fits "
    "| GiB a device | arguments | outputs | temporaries | resident |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  rows = [done[row.name] for row in ROWS if row.name in done]
  return "\n".join(lines + [f"| {' | '.join(cells(row))} |" for row in rows]) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
  head = [
    {TRACED: "one GPU, traced", V5E: "v5e-8", ONE: "one v5p"}[row["topology"]],
    f"LoRA, rank {TRAINED['LoRA']['rank']}" if row["trained"] == "LoRA" else row["trained"],
    f"{row['parameters']:,}",
    row["dtype"],
    str(BATCH // row["micro_batches"]),
    "yes" if row["remat"] else "no",
  ]
  if row["error"]:
    return [*head, "no", row["error"].split(";")[0].removeprefix("a program needs "), *["-"] * 4]
  most = max(map(check_tpu.read, row["programs"].values()), key=lambda one: one.memory)
  parts = (most.memory, most.arguments, most.outputs, most.temporaries, most.resident)
  return [*head, fits(row, most.memory), *(f"{size / topology.GIB:.2f}" for size in parts)]


def fits(row: dict[str, Any], memory: float) -> str:
  """Whether a device of the slice has so many bytes; or which cards surely have."""
  if row["topology"] == V5E:
    return "yes" if topology.fits(memory, row["hbm"]) else "no"
  cards = [card for card, size in CARDS.items() if memory <= (1 - SPARE) * size]
  return " and ".join(cards) or "not shown"


if __name__ == "__main__":
  check_tpu.main("benchmarks.sd_memory", ROWS, measure, markdown)
