"""The time of each way to unlearn a class, beside a plain denoising step, in one run.

  python -m benchmarks.class_methods --out=results     (about 10 minutes on 2 idle cores)
  python -m benchmarks.class_methods --quick           (a smoke test: two methods, one round)

Of every method of configs/unlearn_fashion.py: what `prepare` takes (a mask, a Fisher matrix), what
a step takes, and what all its steps take together, compilation not counted. The steps take turns
with plain ones, and a ratio is between neighbours in time. Last, plain steps of three seeds at once
by `vmap` beside three in turn, which is what the audits do.
"""

import argparse
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import pages
from benchmarks.turns import seconds
from configs import common, unlearn_fashion
from jaxunlearn import build, step

ROUNDS = 10
SEEDS = 3


class Method:
  """A method on the embedded model, compiled."""

  def __init__(self, config: Any):
    self.steps = config.train.steps
    self.setup = build.build(config)
    self.params = build.start_params(self.setup)
    self.state = build.make_state(self.setup, self.params)
    self.batch = self.setup.batch(0)
    if self.steps:
      self.update = step.make_update(self.setup, self.state)
      self.advance()

  def advance(self) -> None:
    self.state, _ = self.update(self.state, self.batch)
    jax.block_until_ready(self.state)

  def prepare(self) -> None:
    jax.block_until_ready(build.make_state(self.setup, self.params))


def plain() -> Any:
  config = unlearn_fashion.get_config()
  config.method, config.streams = common.method("denoising"), {"x": "retain"}
  return config


def measure(name: str, rounds: int, baseline: Method) -> dict[str, Any]:
  """The row of a method."""
  method = Method(unlearn_fashion.get_config(name))
  prepare = seconds(method.prepare)
  row = {"name": name, "steps": method.steps, "prepare": prepare, "step": 0.0, "ratio": 0.0}
  if method.steps:
    pairs = [(seconds(method.advance), seconds(baseline.advance)) for _ in range(rounds)]
    row["step"] = statistics.median(own for own, _ in pairs)
    row["ratio"] = statistics.median(own / other for own, other in pairs)
  return row | {"whole": prepare + method.steps * row["step"]}


def of_seeds(baseline: Method, rounds: int) -> float:
  """The time of one program that steps several seeds, over that of as many steps in turn."""
  stack = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * SEEDS), tree)
  update = jax.jit(jax.vmap(baseline.update))
  states, batches = stack(baseline.state), stack(baseline.batch)
  at_once = lambda: jax.block_until_ready(update(states, batches))
  at_once()
  in_turn = lambda: [baseline.advance() for _ in range(SEEDS)]
  return statistics.median(seconds(at_once) / seconds(in_turn) for _ in range(rounds))


def markdown(result: dict[str, Any]) -> str:
  lines = [
    f"Batches of 32 on {result['device']}, median of {result['rounds']} rounds.",
    "",
    "| method | before the first step, s | a step, s | over a plain step | steps | all, s |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for row in result["rows"]:
    numbers = f"{row['prepare']:.2f} | {row['step']:.3f} | {row['ratio']:.2f}"
    lines.append(f"| {row['name']} | {numbers} | {row['steps']} | {row['whole']:.1f} |")
  ratio = f"{result['seeds_by_vmap']:.2f} of the time of {SEEDS} in turn"
  lines += ["", f"Plain steps of {SEEDS} seeds at once by `vmap` take {ratio}."]
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, help="the folder of the results; else printed")
  parser.add_argument("--quick", action="store_true", help="two methods, one round")
  args = parser.parse_args()
  names, rounds = list(unlearn_fashion.METHODS), ROUNDS
  if args.quick:
    names, rounds = ["embedding_copy", "dimum"], 1
  baseline = Method(plain())
  result = {
    "device": f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
    "rounds": rounds,
    "rows": [measure(name, rounds, baseline) for name in names],
    "seeds_by_vmap": of_seeds(baseline, rounds),
  }
  print(markdown(result))
  pages.write(args.out, "benchmark_class_methods", result, markdown(result))


if __name__ == "__main__":
  main()
