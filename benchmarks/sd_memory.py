"""What fits where: the memory of one SISS step of Stable Diffusion 1.4, by what is trained.

  python -m benchmarks.sd_memory --out=results     (needs libtpu: make check-tpu; hours on a CPU)
  python -m benchmarks.sd_memory --row=NAME        (one row, as JSON)

Networks of version 1 at 512 px (latents of 64 x 64), prompts encoded in the step, AdamW, no EMA;
the frozen part and all that is trained are float32, and the dtype is that of the UNet's work. Each
row is compiled ahead of time by the TPUs' compiler (check_tpu.py), for eight devices of a v5e-8 or
for one device of 95 GiB. The latter stands for a GPU: the program and what it holds are the same,
and temporaries are as that compiler lays them out, not as XLA does for CUDA. Nothing runs.
"""

import dataclasses
import itertools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import check_tpu
from configs import common
from jaxunlearn import adapters, build, methods, models
from jaxunlearn.compiled import topology
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.mesh import sharding
from jaxunlearn.models.text_to_image import Book

V5E, ONE = "v5e:2x4", "v5p:2x2x1"  # of the second, one device
TRAINED = {
  "LoRA": {"pattern": r"/attn[12]/to_", "rank": 4, "alpha": 4.0},
  "attn2": {"pattern": "attn2"},
  "UNet": {"pattern": "^unet/"},
}
BATCH, PROMPTS = 16, 2
CARDS = {"24 GB": 24e9, "80 GB": 80e9}
SPARE = 0.06  # of a GPU's memory: the driver's, cuDNN's, and what lies between blocks


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
  *itertools.starmap(Row, itertools.product([V5E, ONE], TRAINED, DTYPES)),
  *(Row(ONE, trained, dtype, 8, True) for trained in TRAINED for dtype in DTYPES),
]


def setup_of(row: Row) -> build.Setup:
  """The run without its data and its files; ZeRO-3 over the devices."""
  config = common.get_config()
  config.method = common.method("siss", forget_norm=750.0)
  config.train.update(batch=BATCH, micro_batches=row.micro_batches)
  config.trained.update(TRAINED[row.trained])
  devices = topology.devices(row.topology)
  return build.Setup(
    config=config,
    mesh=sharding.make_mesh(1, -1, devices if row.topology == V5E else devices[:1]),
    process=Diffusion(schedule="scaled_linear", beta_1=0.00085, beta_T=0.012),
    net=models.make(
      "text_to_image",
      unet={"dtype": row.dtype, "remat": row.remat},
      classes=(PROMPTS,),
      book=Book(np.zeros((PROMPTS + 1, 77), np.int32)),
    ),
    method=methods.make(**config.method),
    tx=build.make_optimizer(config),
    train=None,
    heldout=None,
    forget=None,
    concept=None,
    streams={},
    trained=adapters.Trained(**config.trained),
  )


def measure(row: Row) -> dict[str, Any]:
  """A row's costs, in JSON's types; of a program that does not fit, what the compiler says."""
  start, setup = time.perf_counter(), setup_of(row)
  params, frozen = jax.eval_shape(setup.split, jax.eval_shape(setup.net.init, jax.random.key(0)))
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  out = {**row._asdict(), "parameters": count(params), "frozen": count(frozen), "error": ""}
  out |= {"hbm": topology.chip(row.topology).hbm, "programs": {}}
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
    "v5e-8" if row["topology"] == V5E else "one device",
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
  """Whether a device of the slice has so many bytes; or which cards have."""
  if row["topology"] == V5E:
    return "yes" if topology.fits(memory, row["hbm"]) else "no"
  cards = [card for card, size in CARDS.items() if memory <= (1 - SPARE) * size]
  return " and ".join(cards) or "neither 24 nor 80 GB"


if __name__ == "__main__":
  check_tpu.main("benchmarks.sd_memory", ROWS, measure, markdown)
