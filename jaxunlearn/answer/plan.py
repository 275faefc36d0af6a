"""How records that a run still has are deleted from it, and what that costs.

A run of one model is trained further against them, in a folder of its own. Where it deleted before,
that is done in the same way; a run that only trained takes SISS, with the steps and the learning
rate that the request gives. A run of compartments trains the shards that saw them again:
cdm/delete.py.
"""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxunlearn import data, fields, methods
from jaxunlearn.evals import distances
from jaxunlearn.reports import lineage, names, subject
from jaxunlearn.reports.subject import Config
from jaxunlearn.weights import layout

METHOD = "siss"  # of a run that deleted nothing yet
CHUNK = 1024  # records at a time
STEPS, LEARNING_RATE = 100, 3e-4  # those of configs/siss_mnist.py


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be done, in words and numbers."""

  lines: tuple[str, ...] = ()
  steps: int = 0
  passes: int = 0  # rows x network passes: a forward is one, a backward two
  anew: str = ""  # what training without the records would cost
  workdir: str = ""  # where a new run would be

  def as_data(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def passes(config: Mapping[str, Any]) -> int:
  """Rows x network passes of a whole run."""
  method = methods.make(**fields.restored(dict(config["method"])))
  train = config["train"]
  return train["steps"] * train["batch"] * (method.forwards + 2 * method.backwards)


def deletion(
  config: Config,
  run: pathlib.Path,
  ids: Collection[str],
  before: Collection[str],
  steps: int = STEPS,
  learning_rate: float = LEARNING_RATE,
  radius: float | None = None,
) -> ConfigDict:
  """The config of a run that deletes those ids from `run`.

  Args:
    before: the ids that `run`, and runs before it, deleted.
    radius: within which a sample is one of the records; None: as in the run.
  """
  out = fields.restored(dict(config))
  gone = subject.kind(config) in ("naive", "unlearning")
  gone = gone and "concept" not in methods.make(**out["method"]).needs
  out.update(init_from=str(run), init_optimizer=False, attack="")
  out["forget"] |= {"ids": tuple(ids), "file": "", "label": "", "style": "", "later": ()}
  out["forget"]["earlier"] = tuple(before)
  out["eval"] |= {"target_name": "target", "before": True, "after": True}
  if radius is not None:
    out["eval"]["target_radius"] = radius
  if not gone:
    out["streams"] = {"x": "retain", "a": "forget"}
    out["method"] = {"name": METHOD, **dataclasses.asdict(methods.make(METHOD))}
    out["optimizer"] |= {"learning_rate": learning_rate, "warmup": 0, "schedule": "constant"}
    out["train"] |= {"steps": steps, "checkpoint_every": max(1, steps // 5)}
  return ConfigDict(out)


def radius(records: data.Records, ids: Collection[str]) -> float:
  """Half the distance, L2 of pixels in [0, 1], from a record to the nearest that is not meant.

  A sample within it is nearer to the record than to any other. Three digits.
  """
  mask = np.isin(records.ids, list(ids))
  mask |= records.copies(mask)
  flat = lambda pixels: pixels.reshape(len(pixels), -1).astype(np.float32) / 255
  targets = flat(np.unique(records.image[np.flatnonzero(mask)], axis=0))
  nearest = np.inf
  for i, pixels in enumerate(records.chunks(CHUNK)):
    others = flat(pixels[~mask[i * CHUNK : (i + 1) * CHUNK]])
    nearest = min(nearest, float(distances.squared(targets, others).min(initial=np.inf)))
  return float(f"{np.sqrt(nearest) / 2:.3g}")


def of_one_model(config: ConfigDict, run: pathlib.Path, workdir: pathlib.Path) -> Plan:
  """The plan of a deletion that has yet to run."""
  found = config.to_dict()
  ids, train = found["forget"]["ids"], found["train"]
  lines = (
    f"Train {run} further with {names.method(found['method']['name'])}, {train['steps']} steps of "
    f"{train['batch']} rows, in {workdir}. It is shown the {_records(len(ids))} to forget and what "
    "is kept.",
    "Measure before and after by the metrics of the run, and compare.",
    "Delete the older checkpoints and the other copies that copies.csv lists.",
  )
  cost = passes(found)
  return Plan(lines, train["steps"], cost, training_anew(run, cost), str(workdir))


def done_already(config: Config, run: pathlib.Path) -> Plan:
  """Of records that the run itself deleted."""
  line = f"Nothing is to be trained: {run} deleted them ({subject.title(config)})."
  lines = (line, "Delete the other copies that copies.csv lists.")
  return Plan(lines, config["train"]["steps"], passes(config), training_anew(run, passes(config)))


def training_anew(run: pathlib.Path, cost: int) -> str:
  """What a model without the records costs, from scratch: as much as the first of its line did."""
  config = first_training(run)
  if config is None:
    return "What training anew costs is not known: the first training is not here."
  train = config["train"]
  whole = train["steps"] * train["batch"] * 3
  share = f"{cost / whole:.1%} of it" if whole else "not comparable with it"
  return (
    f"Training anew without them: {train['steps']:,} steps of {train['batch']} rows; the deletion "
    f"is {share}, in network passes."
  )


def first_training(run: pathlib.Path) -> dict[str, Any] | None:
  """The config of the run that began with random parameters; of an export its config.train."""
  own = layout.read_json(run / lineage.CONFIG)
  if not own.get("init_from"):
    return own
  for one in lineage.ancestors(run):
    if one["field"] != "init_from":
      continue
    if one["path"] and lineage.is_run(pathlib.Path(one["path"])):
      config = layout.read_json(pathlib.Path(one["path"]) / lineage.CONFIG)
      if not config.get("init_from"):
        return config
    folder = data.ASSETS / one["origin"].removeprefix("assets:")
    if one["origin"].startswith("assets:") and (folder / "training.json").is_file():
      return layout.read_json(folder / "training.json")
  return None


def _records(count: int) -> str:
  return "record" if count == 1 else f"{count} records"
