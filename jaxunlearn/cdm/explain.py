"""What a run of compartments says of itself: who saw what, calibration, attribution of samples.

RUN/calibration.md      NLL, ECE and accuracy of the router by level of noise, held-out images
RUN/attribution.csv     what each source gave to some samples of the soft composition
RUN/compartments.json   all of it, for the report
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxunlearn import evaluation
from jaxunlearn.cdm import attribution, calibration, compose, sources
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.cdm.model import FILES, Cdm
from jaxunlearn.latents import cache
from jaxunlearn.mesh import processes
from jaxunlearn.reports import pictures, report, writer

EVERYTHING, CALIBRATION, ATTRIBUTION = FILES


def write(cdm: Cdm, model: Compartments) -> None:
  """Writes the three files, unless they are there."""
  if len(model.names) < 2 or processes.from_first((cdm.workdir / EVERYTHING).exists):
    return
  table, (samples, c) = calibrate(cdm, model), attributed(cdm, model)
  found = attribute(cdm, model, samples, c) if len(samples) else None
  processes.from_first(lambda: _write(cdm, model, table, samples, found))


def _write(
  cdm: Cdm,
  model: Compartments,
  table: list[dict[str, Any]],
  samples: np.ndarray,
  found: attribution.Attribution | None,
) -> None:
  if table:
    writer.replace(cdm.workdir / CALIBRATION, calibration.markdown(table))
  said = {
    "sources": {name: {"records": n} for name, n in zip(model.names, model.counts, strict=True)},
    "deleted": deleted(cdm),
    "seen": cdm.seen(model.names),
    "calibration": table,
    "attribution": draw(cdm, model, samples, found) if found else [],
  }
  writer.replace(cdm.workdir / EVERYTHING, json.dumps(said, indent=2) + "\n")


def deleted(cdm: Cdm) -> list[str]:
  """Each deletion so far, in words."""
  records = (json.loads(path.read_text()) for path in (cdm.workdir / "deletions").glob("*.json"))
  what = lambda r: f"source {r['deleted_source']}, " if "deleted_source" in r else ""
  return sorted(f"{what(r)}{r['deleted_records']} records" for r in records)


def calibrate(cdm: Cdm, model: Compartments) -> list[dict[str, Any]]:
  """The router's calibration on held-out images; empty where the split says not whose they are."""
  heldout = cdm.setup.heldout
  if not len(heldout) or cdm.split.by.startswith("file:"):
    return []
  named = sources.split(heldout, cdm.split, cdm.config.seed, like=cdm.setup.train)
  mine = np.array([named[name] in model.names for name in heldout.ids.tolist()])
  kept = heldout.take(np.flatnonzero(mine))
  source = np.array([model.names.index(named[name]) for name in kept.ids.tolist()], int)
  weigh = processes.local(weights_of(cdm, model))
  rng = jax.random.key(cdm.config.eval.seed)
  images = cache.look(cdm.setup.codec, kept)(np.arange(len(kept)))
  levels = cdm.config.compose.calibration_levels
  return calibration.calibrate(weigh, cdm.setup.process, images, source, rng, levels)


def weights_of(cdm: Cdm, model: Compartments) -> Callable[..., jax.Array]:
  """(x_t, t, c) -> log w_i of the run's router, a pytree."""
  return compose.log_weights(cdm.routed(), cdm.setup.process, model)


def attributed(cdm: Cdm, model: Compartments) -> tuple[np.ndarray, np.ndarray | None]:
  """Samples of the soft composition that are told apart by source, maybe none; their conditions.

  They are as the network sees them: pictures, or latents.
  """
  count = cdm.config.compose.attributed
  if not count:
    return np.empty(0), None
  c = evaluation.plan(cdm.setup, 0, count)
  samples = evaluation.made(cdm.setup, cdm.eps_fn(model, Mode("soft")), 0, c)[:count]
  return samples, None if c is None else c[: len(samples)]


def attribute(
  cdm: Cdm, model: Compartments, samples: np.ndarray, c: np.ndarray | None = None
) -> attribution.Attribution:
  """Their attribution without guidance, which every process computes for itself."""
  apply, model = processes.local((cdm.applied(), model))
  every = compose.eps_all(apply, model)
  return attribution.attribute(
    attribution.under(every, c),
    attribution.under(processes.local(weights_of(cdm, model)), c),
    cdm.setup.process,
    samples,
    jax.random.key(cdm.config.eval.seed),
    probes=cdm.config.compose.attribution_probes,
    tolerance=1e-3,
  )


def draw(
  cdm: Cdm, model: Compartments, samples: np.ndarray, found: attribution.Attribution
) -> list[dict[str, str]]:
  """A picture and a chart of each; their numbers go to attribution.csv."""
  ids = [f"sample {i}" for i in range(len(samples))]
  attribution.write_csv(cdm.workdir / ATTRIBUTION, model.names, ids, found)
  folder = cdm.workdir / "samples"
  out = []
  shown = cdm.setup.codec.decode(samples)
  for i, svg in enumerate(attribution.svgs(model.names, ids, found)):
    pictures.write_one(folder / f"attributed_{i}.png", shown[i])
    out.append({"picture": report.data_uri(folder / f"attributed_{i}.png"), "chart": svg})
  return out
