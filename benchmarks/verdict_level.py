"""The level and the power of the verdict test (evals/three_sample.py), on toys and on digits.

  python -m benchmarks.verdict_level --out=results     (about 25 minutes on one idle core)
  python -m benchmarks.verdict_level --quick           (a smoke test: 4 draws of each)

Samples of U, R and O are drawn anew each time. Where R and O are of one distribution, or differ and
are as far from U, each hypothesis is rejected at .05 in 5% of the draws, if the test is right: 3 to
7% is asked for. Where U is O, or R, it should be rejected often. Features of digits are those of
the embedded classifier, of held-out pictures; the T-shirt is the one that the base model learned.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import pages
from benchmarks.siss_step import environment
from jaxunlearn import data
from jaxunlearn.evals import classifiers, statistics, three_sample

DRAWS, FEWER, QUICK = 1000, 200, 4
SETTINGS = three_sample.Settings(permutations=199)
ALLOWED = (0.03, 0.07)

Samples = tuple[np.ndarray, np.ndarray, np.ndarray]  # U, R and O


@dataclasses.dataclass(frozen=True)
class Case:
  """How U, R and O are drawn, and what is right."""

  name: str
  draw: Callable[[np.random.Generator], Samples]
  null: bool = True  # at the border: 5% of each verdict
  draws: int = DRAWS


def normal(*means: float, n: int = 100, size: int = 2) -> Callable[[np.random.Generator], Samples]:
  """N(mean e_1, I) for each of U, R and O."""

  def draw(rng: np.random.Generator) -> Samples:
    u, r, o = (rng.normal(size=(n, size)) + mean * np.eye(1, size) for mean in means)
    return u, r, o

  return draw


@functools.cache
def features() -> tuple[np.ndarray, np.ndarray]:
  """Of the held-out digits [1500, 64], and of the T-shirt [1, 64]."""
  train, heldout = data.load("mnist_tshirt")
  of = classifiers.load("digits").features
  return of(data.to_model(heldout.image)), of(data.to_model(train.image[-1:]))


def digits(*shares: float, n: int) -> Callable[[np.random.Generator], Samples]:
  """n digits for each of U, R and O, none twice; such a share of them T-shirts instead."""

  def draw(rng: np.random.Generator) -> Samples:
    digit, shirt = features()
    parts = np.split(rng.permutation(len(digit))[: 3 * n], 3)
    there = (rng.random((n, 1)) < share for share in shares)
    u, r, o = (np.where(t, shirt, digit[i]) for t, i in zip(there, parts, strict=True))
    return u, r, o

  return draw


CASES = (
  Case("U, R and O alike", normal(0, 0, 0)),
  Case("U, R and O alike, 64 features", normal(0, 0, 0, size=64)),
  Case("R and O alike, U 1 away", normal(1, 0, 0)),
  Case("R and O 0.5 to either side of U", normal(0, 0.5, -0.5)),
  Case("R and O 1 to either side of U", normal(0, 1, -1)),
  Case("R and O 2 to either side of U", normal(0, 2, -2)),
  Case("digits, U, R and O alike", digits(0, 0, 0, n=100)),
  Case("U is O, R 0.5 away", normal(0.5, 0, 0.5), null=False, draws=FEWER),
  Case("U is O, R 1 away", normal(1, 0, 1), null=False, draws=FEWER),
  Case("U is R, O 0.5 away", normal(0, 0, 0.5), null=False, draws=FEWER),
  Case("U is R, O 1 away", normal(0, 0, 1), null=False, draws=FEWER),
  Case("digits, 10% T-shirts in U and O", digits(0.1, 0, 0.1, n=100), null=False, draws=FEWER),
  Case("digits, 10% T-shirts in O alone", digits(0, 0, 0.1, n=100), null=False, draws=FEWER),
  Case("500 digits, 3% T-shirts in U and O", digits(0.03, 0, 0.03, n=500), null=False, draws=20),
  Case("500 digits, 3% T-shirts in O alone", digits(0, 0, 0.03, n=500), null=False, draws=20),
)


def measure(case: Case, draws: int) -> dict[str, Any]:
  """The share of draws in which each hypothesis is rejected, and seconds a test."""
  begin, p = time.perf_counter(), np.empty((draws, 2))
  for i in tqdm(range(draws), desc=case.name):
    samples = case.draw(np.random.default_rng((0, i)))
    verdict = three_sample.three_sample(*samples, dataclasses.replace(SETTINGS, seed=i))
    p[i] = verdict.p, verdict.p_retrained
  rejected = (p <= SETTINGS.level).sum(axis=0).tolist()
  original, retrained = (
    {"share": hits / draws, "ci95": statistics.wilson(hits, draws)} for hits in rejected
  )
  return {
    "name": case.name,
    "null": case.null,
    "draws": draws,
    "original": original,
    "retrained": retrained,
    "both": sum(rejected) / (2 * draws),
    "seconds": (time.perf_counter() - begin) / draws,
    "identity": verdict.identity,
  }


def markdown(result: dict[str, Any]) -> str:
  low, high = (f"{100 * share:g}" for share in ALLOWED)
  lines = [
    "# Level and power of the verdict test",
    "",
    f"`{result['command']}` on {result['environment']['machine']}. Rejections at "
    f"{SETTINGS.level}, with 95% intervals; a null is right where the mean of both is {low} to "
    f"{high}%.",
    "",
    "| samples | draws | nearer the original | nearer the retrained | mean of both | asked for |",
    "|---|---|---|---|---|---|",
  ]
  for row in result["rows"]:
    cells = [_share(row["original"]), _share(row["retrained"]), f"{100 * row['both']:.1f}%"]
    asked = f"{low} to {high}%" if row["null"] else "often, where it is so"
    lines.append(f"| {row['name']} | {row['draws']} | {' | '.join(cells)} | {asked} |")
  seconds = result["rows"][0]["seconds"]
  return "\n".join([*lines, "", f"One test of 100 samples each took {seconds:.2f} s."])


def _share(entry: dict[str, Any]) -> str:
  low, high = (f"{100 * end:.1f}" for end in entry["ci95"])
  return f"{100 * entry['share']:.1f}% [{low}, {high}]"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, help="write verdict_level.{md,json} there")
  parser.add_argument("--quick", action="store_true")
  args = parser.parse_args()
  result: dict[str, Any] = {
    "command": " ".join(["python -m benchmarks.verdict_level", *sys.argv[1:]]),
    "environment": environment(),
    "rows": [],
  }
  for case in CASES:
    result["rows"].append(measure(case, QUICK if args.quick else case.draws))
    pages.write(args.out, "verdict_level", result, markdown(result) + "\n")
  print(markdown(result))


if __name__ == "__main__":
  main()
