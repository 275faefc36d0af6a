"""Memory, FLOPs and collectives of real steps on TPUs, by compiling ahead of time on a CPU.

  python -m benchmarks.check_tpu --out=results     (needs libtpu: make check-tpu; 1 to 3 hours)
  python -m benchmarks.check_tpu --row=NAME        (one row, as JSON)

Rows: a SISS step of configs/siss_celeba.py (CelebA-HQ 256 px, batch 64) under several settings, a
step of configs/pretrain_uvit_64.py, one solver step of eight composed U-ViT-M/4, and of eight LoRA
of Stable Diffusion 1's UNet, a source a device, and a training step of such U-ViTs as sources, one
a device and one on all. Each is compiled in a process of its own.
Finished rows are kept in check_tpu.json, and a relaunch takes only those that are missing. No TPU
runs anything: times are not in it.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import cdm_little_sd, pretrain_uvit_64, siss_celeba
from jaxunlearn import adapters, build, methods, models, step
from jaxunlearn.cdm import compartment, compose, training
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.cdm.routers import kmeans
from jaxunlearn.checkpoint import State
from jaxunlearn.compiled import collectives, topology
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.mesh import sharding
from jaxunlearn.models.text_to_image import Book
from jaxunlearn.reports import writer

GIB = 2**30
SOURCES, PICTURES = 8, 64  # of the composition: networks, and the rows of a batch
BF16 = {"model.dtype": "bfloat16"}
F32 = {"model.dtype": "float32"}
CDM = {"sources": SOURCES, "batch": PICTURES}
SD_PROCESS = Diffusion(schedule="scaled_linear", beta_1=0.00085, beta_T=0.012)
V5E, V4 = "v5e:2x4", "v4:2x2x2"


class Row(NamedTuple):
  """What is compiled, for what."""

  what: str  # siss_celeba, pretrain_uvit_64, or of SOURCE_STEPS
  topology: str
  settings: dict[str, Any]  # config fields; of sources, what it says

  @property
  def name(self) -> str:
    return " ".join([self.what, self.topology, *(f"{k}={v}" for k, v in self.settings.items())])


MICRO = "train.micro_batches"
ONCE = {"train.gather_once": True}
ROWS = [
  Row("siss_celeba", V5E, BF16 | {MICRO: 1}),
  Row("cdm", V5E, CDM),
  Row("pretrain_uvit_64", V5E, BF16 | {MICRO: 4}),
  Row("siss_celeba", V4, BF16 | {MICRO: 1}),
  Row("pretrain_uvit_64", V4, BF16 | {MICRO: 4}),
  Row("cdm", V4, CDM),
  Row("siss_celeba", V5E, F32 | {MICRO: 8}),
  Row("pretrain_uvit_64", V5E, BF16 | {MICRO: 4} | ONCE),
  Row("pretrain_uvit_64", V4, BF16 | {MICRO: 4} | ONCE),
  Row("cdm_sd", V5E, {"sources": SOURCES, "batch": 8}),
  Row("cdm_train", V5E, {"lanes": 8, "fsdp": 1, "batch": PICTURES}),
  Row("cdm_train", V5E, {"lanes": 1, "fsdp": 8, "batch": PICTURES}),
]


def setup_of(row: Row) -> build.Setup:
  """The run of a config without its data; ZeRO-3 over every device."""
  module = {"siss_celeba": siss_celeba, "pretrain_uvit_64": pretrain_uvit_64}[row.what]
  config = module.get_config()
  config.update_from_flattened_dict(row.settings)
  return built(config, sharding.make_mesh(1, -1, topology.devices(row.topology)))


def built(config: ConfigDict, mesh: Mesh) -> build.Setup:
  return build.without_data(
    config=config,
    mesh=mesh,
    process=Diffusion(**config.process),
    net=models.make(**config.model),
    method=methods.make(**config.method),
  )


def batch_of(setup: build.Setup) -> methods.Batch:
  size = setup.config.train.batch
  image = jax.ShapeDtypeStruct((size, *setup.net.image_shape), jnp.float32)
  number = jax.ShapeDtypeStruct((size,), jnp.int32)
  rows = methods.Rows(image, number if setup.net.classes else None, number)
  batch = dict.fromkeys(setup.method.streams, rows)
  return sharding.shaped(setup.mesh, batch, sharding.batch_sharding(setup.mesh))


class Composed(NamedTuple):
  """Sources to compose, as shapes."""

  apply: Callable[..., jax.Array]  # (params, x, t, c) -> eps of one source
  params: Any  # of one source
  image: tuple[int, int, int]
  process: Diffusion
  prompts: bool


def uvits(mesh: Mesh) -> Composed:
  """Whole U-ViT-M/4."""
  del mesh  # they share nothing that every device holds
  net = models.make("uvit", **pretrain_uvit_64.model())
  params = jax.eval_shape(net.init, jax.random.key(0))
  return Composed(net.apply, params, net.image_shape, Diffusion(), prompts=False)


def loras(mesh: Mesh) -> Composed:
  """LoRA of rank 4 on the attention of Stable Diffusion 1's UNet, which every device holds."""
  book = Book(np.zeros((2, 77), np.int32))
  net = models.make("text_to_image", unet={"dtype": "bfloat16"}, classes=(1,), book=book)
  backbone = jax.eval_shape(net.init, jax.random.key(0))
  kind = adapters.Lora(rank=4, alpha=4.0, pattern=cdm_little_sd.KINDS["lora"]["pattern"])
  one = compartment.make(kind, net, SD_PROCESS)
  params = jax.eval_shape(one.init, jax.random.key(0), backbone)
  held = sharding.shaped(mesh, backbone, sharding.replicated(mesh))
  apply = jax.tree_util.Partial(one.apply, held)
  return Composed(apply, params, net.image_shape, SD_PROCESS, prompts=True)


COMPOSED = {"cdm": uvits, "cdm_sd": loras}


def sampling_step(row: Row) -> tuple[jax.stages.Compiled, float]:
  """One DDIM step of softly composed sources, one a device; and the bytes it has to send.

  Pictures are split, as evaluation.py lays them. They are gathered, as every source needs all, and
  their sums over sources scattered.
  """
  mesh = sharding.make_mesh(devices=topology.devices(row.topology))
  of, pictures = COMPOSED[row.what](mesh), row.settings["batch"]
  stacked = lambda where, shape: jax.ShapeDtypeStruct(
    (SOURCES, *shape), jnp.float32, sharding=where
  )
  split, whole = sharding.source_sharding(mesh, SOURCES, -1), sharding.replicated(mesh)
  router = kmeans.Router()
  width = math.prod(of.image) // router.pool**2
  part = {"center": (router.k, width), "variance": (router.k,), "log_share": (router.k,)}
  compartments = Compartments(
    names=tuple(map(str, range(SOURCES))),
    counts=(1,) * SOURCES,
    params=jax.tree.map(lambda s: stacked(split, s.shape), of.params),
    parts={key: stacked(whole, shape) for key, shape in part.items()},
  )
  eps_fn = compose.compose(of.apply, compartments, router, of.process, Mode("soft"))
  solve = lambda f, x, c: sampling.ddim(f, of.process, jax.random.key(0), x, c, steps=1)
  rows = sharding.batch_sharding(mesh)
  x = jax.ShapeDtypeStruct((pictures, *of.image), jnp.float32, sharding=rows)
  c = jax.ShapeDtypeStruct((pictures,), jnp.int32, sharding=rows) if of.prompts else None
  lowered = jax.jit(solve, out_shardings=rows).lower(eps_fn, x, c)
  with topology.fitting():
    return lowered.compile(), 2 * 4 * x.size * (mesh.size - 1) / mesh.size


def training_step(row: Row) -> tuple[jax.stages.Compiled, float]:
  """A step of sources that are whole U-ViT-M/4; and the bytes it has to send.

  What `fsdp` splits is gathered, and its gradients are scattered, in float32.
  """
  lanes, fsdp, batch = (row.settings[name] for name in ("lanes", "fsdp", "batch"))
  mesh = sharding.make_mesh(-1, fsdp, topology.devices(row.topology))
  setup = built(pretrain_uvit_64.get_config(), mesh)
  where = sharding.source_sharding(mesh, lanes)
  source = compartment.make(adapters.Full(), setup.net, setup.process)

  def start(lane: jax.Array) -> State:
    params = source.init(jax.random.key(lane), None)
    return State(jnp.zeros((), jnp.int32), params, params, setup.tx.init(params), {})

  states = jax.eval_shape(jax.vmap(start), jnp.arange(lanes))
  states = sharding.shaped(mesh, states, sharding.stacked_sharding(where, states))
  rows = methods.Rows(
    jax.ShapeDtypeStruct((lanes, batch, *setup.net.image_shape), jnp.float32),
    None,
    jax.ShapeDtypeStruct((lanes, batch), jnp.int32),
  )
  seeds = jax.ShapeDtypeStruct((lanes,), jnp.uint32)
  given = [sharding.shaped(mesh, tree, where) for tree in (seeds, {"x": rows})]
  lowered = training.update.lower(step.program(setup), source, where, None, states, *given)
  size = sum(leaf.size for leaf in jax.tree.leaves(states.params)) / lanes
  with topology.fitting():
    return lowered.compile(), 2 * 4 * size * (fsdp - 1) / fsdp


SOURCE_STEPS = {
  **dict.fromkeys(COMPOSED, ("solver step", sampling_step)),
  "cdm_train": ("training step", training_step),
}


def measure(row: Row) -> dict[str, Any]:
  """A row's costs, in JSON's types; of a program that does not fit, what the compiler says."""
  start = time.perf_counter()
  out = {**row._asdict(), "hbm": topology.chip(row.topology).hbm, "error": "", "programs": {}}
  try:
    if row.what in SOURCE_STEPS:
      name, compiled = SOURCE_STEPS[row.what]
      program, out["least"] = compiled(row)
      steps = [(name, topology.cost(program))]
    else:
      setup = setup_of(row)
      out["least"] = topology.least(setup)
      steps = topology.step_costs(setup, batch_of(setup))
    for name, one in steps:
      kinds = {kind: dataclasses.asdict(total) for kind, total in one.collectives.items()}
      out["programs"][name] = {**one._asdict(), "collectives": kinds}
      print(f"  {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
  except topology.OutOfMemory as error:
    out["error"] = str(error)
  return {**out, "seconds": time.perf_counter() - start}


def markdown(done: dict[str, Any]) -> str:
  """A line a finished row: its program that needs most memory, and the sums over a step."""
  rows = [done[row.name] for row in ROWS if row.name in done]
  lines = [
    "| step | TPU | settings | fits | memory | arguments | outputs | temporaries | resident "
    "| TFLOP | sent | ZeRO-3 | collectives of a step, and GiB of their results |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  return "\n".join(lines + [f"| {' | '.join(cells(row))} |" for row in rows]) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
  head = [row["what"], row["topology"], settings(row)]
  if row["error"]:
    return [*head, "no", row["error"].split(";")[0].removeprefix("a program needs "), *["-"] * 8]
  costs = list(map(read, row["programs"].values()))
  most = max(costs, key=lambda one: one.memory)
  gib = lambda size: f"{size / GIB:.2f}"
  sent, least = sum(one.moved for one in costs), row["least"]
  bound = lambda field: "≥ " if any(getattr(one, field) for one in costs) else ""
  return [
    *head,
    "yes" if topology.fits(most.memory, row["hbm"]) else "no",
    f"{gib(most.memory)} of {row['hbm']:g}",
    *map(gib, (most.arguments, most.outputs, most.temporaries, most.resident)),
    f"{bound('uncounted')}{sum(one.flops * one.runs for one in costs) / 1e12:.2f}",
    bound("loops") + gib(sent),
    f"{gib(least)} ({bound('loops')}{sent / least:.1f}x)" if least else gib(least),
    ", ".join(f"{t.count} {kind} {gib(t.size)}" for kind, t in topology.together(costs).items()),
  ]


def settings(row: dict[str, Any]) -> str:
  return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in row["settings"].items())


def read(program: dict[str, Any]) -> topology.Cost:
  """A cost from JSON."""
  kinds = {kind: collectives.Total(**total) for kind, total in program["collectives"].items()}
  return topology.Cost(**program | {"collectives": kinds})


def main(
  module: str,
  rows: Sequence[Any],
  measure: Callable[[Any], dict[str, Any]],
  markdown: Callable[[dict[str, Any]], str],
) -> None:
  """The rows that are missing of a module's table, each in a process of its own."""
  name = module.split(".")[-1]
  parser = argparse.ArgumentParser(description=f"make results/{name}.md")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results"))
  parser.add_argument("--row", choices=[row.name for row in rows])
  args = parser.parse_args()
  if args.row:
    print(json.dumps(measure(next(row for row in rows if row.name == args.row))))
    return
  args.out.mkdir(parents=True, exist_ok=True)
  path = args.out / f"{name}.json"
  done = json.loads(path.read_text()) if path.exists() else {}
  for i, row in enumerate(rows, 1):
    print(f"{i} of {len(rows)}: {row.name}{' is there' * (row.name in done)}", flush=True)
    if row.name not in done:
      command = [sys.executable, "-m", module, f"--row={row.name}"]
      found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
      done[row.name] = json.loads(found.splitlines()[-1])
      writer.replace(path, json.dumps(done, indent=1) + "\n")
    writer.replace(path.with_suffix(".md"), markdown(done))
  print(markdown(done))


if __name__ == "__main__":
  main("benchmarks.check_tpu", ROWS, measure, markdown)
