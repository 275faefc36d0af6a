"""Compositions of 2 to 16 sources of a little Stable Diffusion beside monoliths, 3 seeds, paired.

    python -m jaxunlearn.main --config=configs/table_cdm_little_styles.py:uniform \\
        --workdir=runs/cdm_table

and the same with class, in the same working directory: results/cdm_little_styles_*.md.
`:class,1` takes the first seed alone, and a later `:class` in the same directory the others. The
monoliths are LoRA of the rank of one source, the same trained half as long (does more training
still change it?), and all of the UNet. Finished runs are skipped; launched twice at once it uses
two cores.
"""

import functools

from ml_collections import ConfigDict

from configs import cdm_little_styles, common, table_cdm
from jaxunlearn import errors

SEEDS = (0, 1, 2)
COUNTS = {"uniform": (2, 4, 8, 16), "class": (2, 4)}
# Of kinds of emoji each source has its own: a prompt names the source, and the modes that have
# priors are one and the same.
OF_CLASS = ("naive", "soft", "top1")
KINDS, OF_KINDS = ("attn2", "full"), 4  # beside LoRA, of so many sources
ONE, ALL = "monolith, as large as one source", "monolith, all of the UNet"
HALF = "monolith, half the steps"


def get_config(words: str = "uniform"):
  by, _, number = words.partition(",")
  errors.check_choice("split", by, COUNTS)
  seeds = common.first(SEEDS, number)
  config = ConfigDict(
    {"runs": {}, "rows": (), "out": f"results/cdm_little_styles_{by}", "paired": ONE}
  )
  config.published = ()
  config.columns = (
    ("feature_fid", "feature FID"),
    ("feature_fid_change", "its change, paired"),
    ("real_fid", "of real pictures"),
    ("alignment", "alignment"),
    ("aligned_class", "kind shown"),
    ("aligned_style", "style shown"),
    ("copied", "nearer training than held out"),
    ("network_evaluations", "evaluations"),
    ("parameters", "parameters"),
  )
  add = functools.partial(_add, config, seeds)
  add("one", {"": ONE}, lambda: cdm_little_styles.compartments("uniform", 1))
  add("half", {"": HALF}, half_as_long)
  add("all", {"": ALL}, lambda: cdm_little_styles.compartments("uniform", 1, "full"))
  for n in COUNTS[by]:
    modes = table_cdm.MODES if by == "uniform" else OF_CLASS
    titles = {mode: f"{n}: {table_cdm.MODES[mode]}" for mode in modes}
    add(f"{by}{n}", titles, lambda n=n: cdm_little_styles.compartments(by, n))
  for kind in KINDS if by == "uniform" else ():
    titles = {mode: f"{OF_KINDS}, {kind}: {table_cdm.MODES[mode]}" for mode in ("soft", "top1")}
    make = lambda kind=kind: cdm_little_styles.compartments(by, OF_KINDS, kind)
    add(f"{by}{OF_KINDS}_{kind}", titles, make)
  return config


def half_as_long() -> ConfigDict:
  config = cdm_little_styles.compartments("uniform", 1)
  config.train.steps //= 2
  return config


def _add(config, seeds, name, titles, make):
  """The runs of all seeds, and a row for each mode; of a monolith there is one."""
  for seed in seeds:
    run = config.runs[f"{name}_{seed}"] = make()
    run.seed = seed
    if titles.keys() <= {""}:
      run.compose.modes = ("naive",)
    else:
      run.compose.modes = tuple(titles)
  for mode, title in titles.items():
    names = tuple(f"{name}_{seed}#{mode or 'naive'}" for seed in seeds)
    config.rows += ((title, names, ()),)
