"""Compositions of 2, 4 and 8 sources beside the monolith, under one split of digits and clothes.

    python -m jaxunlearn.main --config=configs/table_cdm.py:uniform --workdir=runs/table_cdm

and the same with class and folder, in the same working directory: results/cdm_{uniform,...}.md.
Finished runs are skipped; launched twice at once it uses two cores. About two hours on one core.
"""

from ml_collections import ConfigDict

from configs import cdm_digits_clothes

MODES = {
  "trajectory": "one source a trajectory",
  "step": "one source a step",
  "naive": "average",
  "soft": "soft",
  "top1": "top-1",
  "top2": "top-2",
}
FOLDERS = ("fashion", "mnist")


def get_config(by: str = "class"):
  config = ConfigDict({"runs": {}, "rows": (), "out": f"results/cdm_{by}", "published": ()})
  config.columns = (
    ("feature_fid", "feature FID"),
    ("network_evaluations", "evaluations of a network"),
    ("parameters", "parameters"),
  )
  config.runs.monolith = cdm_digits_clothes.compartments("uniform", 1)
  config.rows = (("monolith", ("monolith#naive",), ()),)
  for n in (2, 4, 8):
    run = cdm_digits_clothes.compartments(by, n)
    config.runs[f"{by}{n}"] = run
    rows = [(f"{n}: {title}", (f"{by}{n}#{mode}",), ()) for mode, title in MODES.items()]
    config.rows += (*rows, (f"{n}: each source alone", alone(by, n), ()))
  return config


def alone(by: str, n: int) -> tuple[str, ...]:
  """The phases of each source by itself, whose mean is a row."""
  names = [f"{by}-{i}" for i in range(n)]
  if by == "folder":
    parts = n // 2
    names = [f"{folder}-{i}" if parts > 1 else folder for folder in FOLDERS for i in range(parts)]
  return tuple(f"{by}{n}#alone_{name}" for name in names)
