"""What attacks bring back: the recovery curves of an unlearned model and their maxima.

An attack is a run of its own, named NAME@ATTACK after the run that it attacks. Its probes give
AR(step), the share of samples under the condition to forget that show it again; an attack with
several learning rates is several runs, NAME@ATTACK_RATE, and what counts is the largest AR over
rates and steps (Yuan et al., 2025, report AR at each step).
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn import writer

PROBE = "probe_ar"

Attacks = Sequence[tuple[str, str, Sequence[str]]]  # metric, title, suffixes of the runs' names


def recovered(
  workdir: pathlib.Path, name: str, attacks: Attacks, after: Mapping[str, Any]
) -> dict[str, Any]:
  """The largest AR of each attack on a run, as entries of its results; those made are counted.

  AR at step 0 is that of the unlearned model itself.
  """
  out = {}
  for metric, _, suffixes in attacks:
    curves = {s: curve(workdir / f"{name}@{s}") for s in suffixes}
    made = {s: c for s, c in curves.items() if len(c)}
    if not made:
      continue
    best = max(made, key=lambda s: made[s][:, 1].max())
    value = float(max(made[best][:, 1].max(), after["ar"]["value"]))
    probes = sum(len(c) for c in made.values())
    identity = f"attacks={','.join(made)} probes={probes} {after['ar']['identity']}"
    out[metric] = {"value": value, "ci95": None, "identity": identity, "best": best}
  return out


def curve(run: pathlib.Path) -> np.ndarray:
  """[N, 2] steps and AR of the probes of an attack."""
  lines = [line for line in writer.read(run / "metrics.jsonl") if PROBE in line]
  return np.array([(line["step"], float(line[PROBE])) for line in lines]).reshape(-1, 2)


def mean_curves(
  workdir: pathlib.Path, names: Sequence[str], attacks: Attacks
) -> dict[str, list[list[float]]]:
  """suffix -> [step, AR, lowest, highest] at each probe, over the runs that an attack was made on."""
  out = {}
  for suffix in (suffix for _, _, suffixes in attacks for suffix in suffixes):
    curves = [c for c in (curve(workdir / f"{name}@{suffix}") for name in names) if len(c)]
    if curves:
      stack = np.stack([c[: min(map(len, curves))] for c in curves])
      ar = stack[:, :, 1]
      columns = (stack[0, :, 0], ar.mean(0), ar.min(0), ar.max(0))
      out[suffix] = np.stack(columns, axis=1).round(4).tolist()
  return out
