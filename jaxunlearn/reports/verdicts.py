"""The verdict column of a table: is each run nearer the retrained model, or the original?

evals/three_sample.py, on features that runs keep of their samples (config.eval.features). U is a
run; R and O are runs of the rows `retrained` and `pretrained` with the same request to forget, each
of another eval.seed than U and than the other: samples of one seed come from the same noise and are
not independent. So a table needs three seeds, and its retrained row is a check: retrained models
against retrained ones.

A row has several runs, whose p-values hang together: they are combined as K / k times the k-th
smallest, k = K / 2 rounded up, which is a p-value whatever hangs on what (Rueger, 1978). Where some
runs are nearer the original and others nearer the retrained model, that is what the row says.
"""

import functools
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxunlearn.evals import three_sample
from jaxunlearn.reports import writer

RETRAINED, ORIGINAL = "retrained", "pretrained"  # how the labels of these rows begin
RUNS_APART = "runs disagree"
COLUMN = "verdict"  # of config.columns
FOLDER = "features"


class Features(NamedTuple):
  """Of the samples of one phase of a run."""

  values: np.ndarray  # float16 [N, D]
  extractor: str  # the network that made them, with a hash


def write(workdir: pathlib.Path, phase: str, features: Features) -> None:
  """features/PHASE.npz in a run's folder: some hundred bytes a sample."""
  arrays = io.BytesIO()
  values = np.float16(features.values)
  np.savez_compressed(arrays, values=values, extractor=np.array(features.extractor))
  path = pathlib.Path(workdir) / FOLDER / f"{phase}.npz"
  path.parent.mkdir(parents=True, exist_ok=True)
  writer.replace(path, arrays.getvalue())


@functools.lru_cache(maxsize=16)
def read(path: pathlib.Path) -> Features | None:
  """None where a run kept none, or where they are not finite: its model diverged."""
  if not path.exists():
    return None
  with np.load(path) as arrays:
    found = Features(arrays["values"], str(arrays["extractor"]))
  return found if np.isfinite(found.values).all() else None


def of_row(
  config: ConfigDict, workdir: pathlib.Path, names: Sequence[str]
) -> dict[str, Any] | None:
  """The entry of a row in the table; None where no run of it has a verdict."""
  found = [verdict for name in names if (verdict := of_run(config, workdir, name))]
  if not found:
    return None
  p, p_retrained = combined([v.p for v in found]), combined([v.p_retrained for v in found])
  said = three_sample.say(p, p_retrained)
  if said == three_sample.APART and said not in [v.verdict for v in found]:
    said = RUNS_APART
  shown = p_retrained if said == three_sample.RETRAINED else p
  return {
    "value": p,
    "ci95": None,
    "runs": [v.p for v in found],
    "p_retrained": p_retrained,
    "runs_p_retrained": [v.p_retrained for v in found],
    "words": f"{said}, p {shown:.2g}",
    "identity": sorted({v.identity for v in found}),
  }


def of_run(config: ConfigDict, workdir: pathlib.Path, name: str) -> three_sample.Verdict | None:
  """The verdict on one run; None where a partner, or features of one network, are missing."""
  run, _, phase = name.partition("#")
  partners = _partners(config, run)
  if partners is None:
    return None
  places = [(run, phase or "after"), *((partner, "after") for partner in partners)]
  found = [read(pathlib.Path(workdir) / run / FOLDER / f"{phase}.npz") for run, phase in places]
  kept = [features for features in found if features]
  if len(kept) < 3 or len({features.extractor for features in kept}) > 1:
    return None
  u, r, o = (np.asarray(features.values, np.float64) for features in kept)
  told = f"{kept[0].extractor} u={run} r={partners[0]} o={partners[1]}"
  return three_sample.three_sample(u, r, o, features=told)


def _partners(config: ConfigDict, run: str) -> tuple[str, str] | None:
  """The retrained run and the original one, of the next seeds after this run's, in a circle."""
  request = lambda name: config.runs[name].forget.to_dict()
  alike = lambda row: {
    config.runs[name].eval.seed: name
    for label, names, _ in config.rows
    if label.partition(":")[0] == row
    for name in names
    if "#" not in name and request(name) == request(run)
  }
  mine, retrained, original = config.runs[run].eval.seed, alike(RETRAINED), alike(ORIGINAL)
  r = _next(mine, retrained)
  o = _next(mine if r is None else r, {s: n for s, n in original.items() if s != mine})
  return None if r is None or o is None else (retrained[r], original[o])


def _next(seed: int, runs: Mapping[int, str]) -> int | None:
  """The next larger seed that is there, or else the smallest; never this one."""
  others = sorted(other for other in runs if other != seed)
  return next((other for other in others if other > seed), others[0] if others else None)


def combined(p: Sequence[float]) -> float:
  """One p-value of several that may hang together."""
  k = -(-len(p) // 2)
  return min(1.0, len(p) / k * sorted(p)[k - 1])
