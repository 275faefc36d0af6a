"""Compare ways to attribute on a run of compartments, against dropping each source.

    jaxunlearn cdm compare --run=runs/cdm --images=16 --out=results/cdm_attribution
      [--model=runs/monolith --unlearned=animals=runs/no_animals --unlearned=food=runs/no_food]

The images are held-out ones, or samples where none are. --model and --unlearned add GUDA: a run of
one model on everything, and for each source a run that unlearned it. Written are OUT.csv, OUT.md
and OUT.svg. Exit codes as jaxunlearn.main.
"""

import argparse
import pathlib
import sys
import time
import types
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import evaluation
from jaxunlearn.cdm import attribution, compare, compose, delete, explain
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.commands import guard
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.latents import cache
from jaxunlearn.weights import of_run


def scores(
  cdm: Cdm,
  model: Compartments,
  x: np.ndarray,
  c: np.ndarray | None,
  others: Mapping[str, EpsFn],
  draws: int,
) -> dict[str, compare.Scores]:
  """The scores of every way; `others` are the models of GUDA: "" the whole one, else by source."""
  process, rng = cdm.setup.process, jax.random.key(cdm.config.eval.seed)
  with_c = lambda fn: attribution.under(fn, c)
  # Without guidance, and with weights of each call: densities are what is compared.
  apply, router = cdm.applied(), types.SimpleNamespace(logits=cdm.routed().logits)
  one = lambda m: with_c(compose.compose(apply, m, router, process, Mode("soft")))
  whole, without = one(model), [one(model.without([name])) for name in model.names]
  probes = cdm.config.compose.attribution_probes
  v = jax.random.rademacher(rng, (probes, *x.shape), jnp.float32)
  found = {
    compare.ORACLE: compare.timed(lambda: compare.oracle(whole, without, process, x, v, 1e-3))
  }
  start = time.perf_counter()
  flowed = explain.attribute(cdm, model, x, c)
  jax.block_until_ready(flowed.parts)
  found |= compare.of_attribution(flowed, time.perf_counter() - start)
  found["elbo"] = compare.timed(lambda: compare.gaps(whole, without, process, x, rng, draws))
  if others:
    full, rest = with_c(others[""]), [with_c(others[name]) for name in model.names]
    found["guda"] = compare.timed(lambda: compare.gaps(full, rest, process, x, rng, draws))
  return found


def images(cdm: Cdm, model: Compartments, count: int) -> tuple[np.ndarray, np.ndarray | None, list]:
  """What is attributed, as the network sees it: held-out records, or samples; conditions; ids."""
  heldout = cdm.setup.heldout
  if not len(heldout):
    c = evaluation.plan(cdm.setup, 0, count)
    x = evaluation.made(cdm.setup, cdm.eps_fn(model, Mode("soft")), 0, c)[:count]
    return x, None if c is None else c[: len(x)], [f"sample {i}" for i in range(len(x))]
  some = heldout.take(np.linspace(0, len(heldout) - 1, min(count, len(heldout))).astype(int))
  x = cache.look(cdm.setup.codec, some)(np.arange(len(some)))
  return x, some.conditions if cdm.setup.net.classes else None, some.ids.tolist()


def guda(cdm: Cdm, model: str, unlearned: Sequence[str], names: Sequence[str]) -> dict[str, EpsFn]:
  """ "" -> the whole model, source -> the one that unlearned it; {} where none are given.

  Raises:
    ValueError: a source without such a run.
  """
  runs = dict(pair.split("=", 1) for pair in unlearned if "=" in pair)
  if not model and not runs:
    return {}
  if missing := [name for name in names if name not in runs]:
    raise ValueError(f"--unlearned has no run for {', '.join(missing)}; give SOURCE=RUN for each")
  if not model:
    raise ValueError("--unlearned is there and --model is not; give the run that they started from")
  predict, net = cdm.setup.process.predictor(cdm.setup.net.apply), cdm.setup.net
  read = lambda run: of_run.whole(pathlib.Path(run), net, cdm.setup.mesh, "params")
  bound = lambda run: jax.tree_util.Partial(predict, jax.tree.map(jnp.asarray, read(run)))
  return {"": bound(model), **{name: bound(runs[name]) for name in names}}


def command(args: argparse.Namespace) -> None:
  cdm = delete.open_run(args.run)
  if args.probes:
    cdm.config.compose.attribution_probes = args.probes
  model = cdm.model(cdm.train())
  if len(model.names) < 3:
    raise ValueError(f"{args.run} has {len(model.names)} sources; ranks need three or more")
  others = guda(cdm, args.model, args.unlearned, model.names)
  x, c, ids = images(cdm, model, args.images)
  found = scores(cdm, model, x, c, others, args.draws)
  print(compare.write(args.out, model.names, ids, found))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn cdm compare", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="files to write, no ending")
  parser.add_argument("--images", type=int, default=16, help="how many are attributed")
  parser.add_argument("--draws", type=int, default=64, help="times and noises of a bound")
  parser.add_argument("--probes", type=int, default=0, help="of a divergence; 0: as the run has")
  parser.add_argument("--model", default="", help="a run of one model on everything, for GUDA")
  parser.add_argument("--unlearned", action="append", default=[], help="SOURCE=RUN, for GUDA")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: command(args))


if __name__ == "__main__":
  sys.exit(start())
