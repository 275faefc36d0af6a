"""A run of a compartmentalised model: split, train, route; then every composition is evaluated."""

import functools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxunlearn import train
from jaxunlearn.cdm import explain
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.evaluation import Evaluation
from jaxunlearn.mesh import processes
from jaxunlearn.reports import report


def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains every source, fits the router, evaluates every mode; returns results.json.

  Launched again it goes on where it was. Raises as train.run.
  """
  with processes.stop_signal() as stopped, train.unbound_if_refused(pathlib.Path(workdir)):
    cdm = Cdm(config, workdir, stopped)
    cdm.open()
    model = cdm.model(cdm.train())
    evaluation = Evaluation(cdm.setup, cdm.workdir, stopped)
    for phase, mode, names in cdm.phases(model.names):
      chosen = model.only(names)
      evaluation.measure(phase, functools.partial(cdm.eps_fn, chosen, mode))
      processes.from_first(functools.partial(cdm.note_cost, phase, chosen, mode))
    explain.write(cdm, model)
  return processes.from_first(lambda: report.write(workdir))
