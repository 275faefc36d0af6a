"""Time and memory of sampling from n composed sources, beside the monolith, in one run.

  python -m benchmarks.cdm_sampling --out=results     (about 15 minutes on 2 idle cores)
  python -m benchmarks.cdm_sampling --quick           (a smoke test on a tiny U-ViT)

One evaluation of the noise predictor for a batch, which is what a sampler repeats: of the monolith
(one network on all rows), of soft weights over n whole networks at once (vmap) or one after the
other (scan), of top-1 and top-2 (each network on the rows that need it), and of adapters on one
backbone. The variants take turns, one evaluation each, and a ratio is between neighbours in time:
the time of a variant over that of the monolith beside it. Weights are random, and so are the
router's centroids, which spread the rows over all sources: the hard case for top-k. Memory is what
XLA says that the program holds at once: arguments (all parameters, and the batch) and temporaries.
"""

import argparse
import dataclasses
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pages
from benchmarks.turns import seconds
from jaxunlearn import adapters, models
from jaxunlearn.cdm import compartment, compose
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.cdm.routers import kmeans
from jaxunlearn.diffusion import Diffusion

NET = {"sample_size": 28, "in_channels": 1, "patch_size": 4, "width": 64, "depth": 4, "heads": 4}
TINY = {"sample_size": 8, "in_channels": 1, "patch_size": 4, "width": 8, "depth": 2, "heads": 2}
COUNTS = (2, 4, 8)
BATCH = 256
ROUNDS = 15
PROCESS = Diffusion()
BLOCK = 16  # rows of one source at a time, where not all networks are evaluated


class Variant(NamedTuple):
  """A way to sample, compiled: `call` evaluates it once."""

  name: str
  n: int
  call: Callable[[], Any]
  arguments: int  # bytes
  temporaries: int


def random_params(shapes: Any, rng: np.random.Generator) -> Any:
  """Weights of the size that training would leave."""
  draw = lambda s: jnp.asarray(rng.normal(0, 0.05, s.shape), jnp.float32)
  return jax.tree.map(draw, shapes)


def compiled(name: str, n: int, eps_fn: Any, x: jax.Array, t: jax.Array) -> Variant:
  program = jax.jit(lambda f, x, t: f(x, t)).lower(eps_fn, x, t).compile()
  memory = program.memory_analysis()
  call = lambda: jax.block_until_ready(program(eps_fn, x, t))
  call()
  return Variant(name, n, call, memory.argument_size_in_bytes, memory.temp_size_in_bytes)


def variants(fields: dict[str, Any], counts: Sequence[int], batch: int) -> list[Variant]:
  """The monolith and every way to compose n sources, compiled and called once."""
  rng = np.random.default_rng(0)
  net = models.make("uvit", **fields)
  backbone = random_params(jax.eval_shape(net.init, jax.random.key(0)), rng)
  x = jnp.asarray(rng.normal(0, 1, (batch, *net.image_shape)), jnp.float32)
  t = jnp.asarray(rng.integers(0, 300, batch), jnp.int32)
  monolith = jax.tree_util.Partial(net.apply, backbone)
  out = [compiled("monolith", 1, monolith, x, t)]
  blocks = jax.tree_util.Partial(_in_blocks, monolith)
  out.append(compiled(f"monolith, blocks of {BLOCK}", 1, blocks, x, t))
  for n in counts:
    for name, kind, mode in ways():
      eps_fn = composed(net, backbone, kind, mode, n, rng)
      out.append(compiled(name, n, eps_fn, x, t))
  return out


def composed(
  net: Any, backbone: Any, kind: Any, mode: Mode, n: int, rng: np.random.Generator
) -> Any:
  """The noise predictor of n sources of random weights, whose router spreads rows over all."""
  router = kmeans.Router(k=8)
  width = router.features(jnp.zeros((1, *net.image_shape))).shape[1]
  parts = {
    "center": jnp.asarray(rng.normal(0, 1, (n, router.k, width)), jnp.float32),
    "variance": jnp.ones((n, router.k)),
    "log_share": jnp.full((n, router.k), -np.log(router.k), jnp.float32),
  }
  one = compartment.make(kind, net, PROCESS)
  shapes = jax.eval_shape(one.init, jax.random.key(0), backbone)
  params = [random_params(shapes, rng) for _ in range(n)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  sources = Compartments(tuple(map(str, range(n))), (1,) * n, stacked, parts)
  apply = jax.tree_util.Partial(one.apply, backbone)
  return compose.compose(apply, sources, router, PROCESS, mode)


def _in_blocks(eps_fn: Any, x: jax.Array, t: jax.Array) -> jax.Array:
  """As top-k has its rows: some at a time, which stay in the cache."""
  return compose.in_blocks(BLOCK, lambda x, t: eps_fn(x, t), x, t)


@dataclasses.dataclass(frozen=True)
class Merged(adapters.Lora):
  """LoRA as W + s A B, made for each source: what products beside the layers are compared with."""

  def apply(self, net: Any, backbone: Any, params: Any, x: Any, t: Any, c: Any = None) -> Any:
    return net.apply(self.trained.whole(backbone, params), x, t, c)


def ways() -> list[tuple[str, Any, Mode]]:
  full = adapters.Full()
  return [
    ("soft, vmap", full, Mode("soft")),
    ("soft, scan", full, Mode("soft", over="scan")),
    ("top-1", full, Mode("topk", k=1, block=BLOCK)),
    ("top-2", full, Mode("topk", k=2, block=BLOCK)),
    (f"soft, scan, blocks of {BLOCK}", full, Mode("soft", over="scan", rows=BLOCK)),
    ("soft, LoRA", adapters.Lora(rank=8), Mode("soft")),
    ("soft, LoRA merged", Merged(rank=8), Mode("soft")),
    (f"soft, LoRA, blocks of {BLOCK}", adapters.Lora(rank=8), Mode("soft", rows=BLOCK)),
    ("top-1, LoRA", adapters.Lora(rank=8), Mode("topk", k=1, block=BLOCK)),
    ("soft, prompts", adapters.Prompts(tokens=16), Mode("soft")),
  ]


def measure(made: Sequence[Variant], rounds: int, batch: int) -> list[dict[str, Any]]:
  """A row a variant: the median over rounds of its time, and of its ratio to the monolith."""
  monolith, *others = made
  times: dict[int, list[float]] = {i: [] for i in range(len(others))}
  ratios: dict[int, list[float]] = {i: [] for i in range(len(others))}
  alone: list[float] = []
  for _ in range(rounds):
    for i, variant in enumerate(others):
      before, own = seconds(monolith.call), seconds(variant.call)
      after = seconds(monolith.call)
      alone += [before, after]
      times[i].append(own)
      ratios[i].append(2 * own / (before + after))
  facts = lambda v, spent, ratio: {
    "name": v.name,
    "n": v.n,
    "ms_per_sample": 1e3 * statistics.median(spent) / batch,
    "ratio": statistics.median(ratio),
    "ratio_range": [min(ratio), max(ratio)],
    "arguments": v.arguments,
    "temporaries": v.temporaries,
  }
  rows = [facts(monolith, alone, [1.0])]
  return rows + [facts(v, times[i], ratios[i]) for i, v in enumerate(others)]


def markdown(result: dict[str, Any]) -> str:
  lines = [
    f"One evaluation of {result['batch']} pictures on {result['device']}, "
    f"{result['parameters']:,} parameters a network, median of {result['rounds']} rounds.",
    "",
    "| | sources | ms a picture | over the monolith | arguments, MB | temporaries, MB |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for row in result["rows"]:
    low, high = row["ratio_range"]
    size = [f"{row[name] / 1e6:.1f}" for name in ("arguments", "temporaries")]
    ratio = "1" if row["name"] == "monolith" else f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
    lines.append(
      f"| {row['name']} | {row['n']} | {row['ms_per_sample']:.3f} | {ratio} | {' | '.join(size)} |"
    )
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, help="the folder of the results; else printed")
  parser.add_argument("--rounds", type=int, default=ROUNDS)
  parser.add_argument("--quick", action="store_true", help="a tiny network, 2 sources, one round")
  args = parser.parse_args()
  fields, counts, batch = (TINY, (2,), 8) if args.quick else (NET, COUNTS, BATCH)
  made = variants(fields, counts, batch)
  rounds = 1 if args.quick else args.rounds
  net = models.make("uvit", **fields)
  shapes = jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0)))
  result = {
    "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    "batch": batch,
    "rounds": rounds,
    "parameters": sum(leaf.size for leaf in shapes),
    "rows": measure(made, rounds, batch),
  }
  print(markdown(result))
  pages.write(args.out, "benchmark_cdm_sampling", result, markdown(result))


if __name__ == "__main__":
  main()
