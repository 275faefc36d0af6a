"""What SISS adds to a plain denoising step at the shapes of CelebA-HQ, both of this project.

  python -m benchmarks.siss_over_plain --out=results     (8 minutes on 2 idle cores, 12 GiB)
  python -m benchmarks.siss_over_plain --quick           (a smoke test on a tiny UNet)

The UNet of google/ddpm-celebahq-256 with random weights, one row a micro-batch. Its pictures are as
far apart as photographs, so that a noised row is hardly ever of both: SISS then needs one backward
pass of it, as a plain step does (methods/siss.py). Each step lives in a process of its own, and
they take turns.
"""

import argparse
import pathlib
import statistics
import sys
from typing import Any

from benchmarks import pages, siss_step
from configs import siss_celeba

BATCH, ROUNDS = 4, 3


def measure(fields: dict[str, Any], batch: int, rounds: int) -> dict[str, Any]:
  """Of each kind of step its seconds and passes, and the ratio of neighbours in time."""
  specs = [siss_step.Spec("ours", kind, f"1x{batch}") for kind in siss_step.KINDS]
  workers = [siss_step.Worker(spec, fields, batch) for spec in specs]
  taken = [[worker.step(seed) for worker in workers] for seed in range(1, 1 + rounds)]
  for worker in workers:
    worker.stop()
  ratios = [siss["seconds"] / plain["seconds"] for plain, siss in taken]
  return {
    "batch": batch,
    "rounds": rounds,
    "steps": {
      worker.spec.kind: siss_step.summary(worker, column)
      for worker, column in zip(workers, zip(*taken, strict=True), strict=True)
    },
    "ratio": statistics.median(ratios),
    "ratio_range": [min(ratios), max(ratios)],
  }


def markdown(result: dict[str, Any]) -> str:
  lines = [
    "# A SISS step beside a plain one, at the shapes of CelebA-HQ",
    "",
    f"{pages.made(result['command'], result['environment'])} {result['batch']} rows, one a "
    f"micro-batch, float32; {result['rounds']} rounds.",
    "",
    "| step | passes | median s (min to max) | peak memory, MiB |",
    "|---|---|---|---|",
  ]
  for kind, step in result["steps"].items():
    seconds = step["seconds"]
    lines.append(
      f"| {kind} | {step['passes']:.2f} F | {step['median_seconds']:.2f} ({min(seconds):.2f} to "
      f"{max(seconds):.2f}) | {step['peak_mib']:.0f} |"
    )
  low, high = result["ratio_range"]
  told = f"SISS over plain, median of neighbours: {result['ratio']:.2f} ({low:.2f} to {high:.2f})."
  return "\n".join([*lines, "", told]) + "\n"


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="write siss_over_plain.{md,json} there")
  parser.add_argument("--quick", action="store_true", help="a tiny UNet: does it still run?")
  args = parser.parse_args()
  fields, batch, rounds = siss_celeba.model(), BATCH, ROUNDS
  if args.quick:
    fields, batch, rounds = siss_step.TINY, 2, 1
  result = {
    "command": " ".join(["python -m benchmarks.siss_over_plain", *sys.argv[1:]]),
    "environment": siss_step.environment(),
    **measure(fields, batch, rounds),
  }
  print(markdown(result))
  pages.write(args.out, "siss_over_plain", result, markdown(result))


if __name__ == "__main__":
  main()
