"""The command line: `python -m jaxunlearn.main --config=configs/siss_mnist.py --workdir=runs/x`.

Any field of the config can be set: `--config.train.steps=40`. `--dry_run` prints what the run
would be and what one step costs, and stops.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/; FILE.py:NAME picks a variant.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run writes, and resumes from.")
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print the resolved config and the cost of one step, then stop."
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]!r} is not a flag; write --config.FIELD=VALUE")
  if _CONFIG.value is None:
    raise app.UsageError("--config is missing; try --config=configs/siss_mnist.py")
  from jaxunlearn import train  # noqa: PLC0415  (importing JAX is slow; --help is not)

  try:
    if _DRY_RUN.value:
      from jaxunlearn import dry_run  # noqa: PLC0415

      print(dry_run.describe(_CONFIG.value))
    elif _WORKDIR.value is None:
      raise ValueError("--workdir is missing; try --workdir=runs/NAME")
    else:
      train.run(_CONFIG.value, pathlib.Path(_WORKDIR.value))
  except (ValueError, train.Diverged) as error:
    logging.error("%s", error)
    sys.exit(2 if isinstance(error, ValueError) else 3)


if __name__ == "__main__":
  app.run(main)
