"""Add a source to a compartmentalised model; no record of another is read or trained on again.

    jaxunlearn cdm add --run=runs/cdm --source=fashion

The source is one that the run's split names and that was absent (config.sources.absent, or new
records in the data folder). Its shard is trained, its part of the router fitted, and every mode
evaluated again. Exit codes as jaxunlearn.main.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxunlearn import errors
from jaxunlearn.cdm import delete, sources
from jaxunlearn.cdm import run as cdm_run
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.commands import guard
from jaxunlearn.mesh import processes


def add(cdm: Cdm, source: str) -> int:
  """Gives the source its records, without training yet; returns how many.

  Raises:
    ValueError: no such source in the split, or one that is there already.
  """
  present = cdm.sources
  found = sources.split(cdm.setup.train, cdm.split, cdm.config.seed)
  errors.check_choice("source", source, sorted(set(found.values())))
  if source in present.values():
    raise ValueError(f"source {source} is there already; name one that is yet to come")
  new = {name: source for name, other in found.items() if other == source and name not in present}
  removed = cdm.clear([source])
  cdm.assign(present | new, "added", removed=removed, source=source, added_records=len(new))
  return len(new)


def command(args: argparse.Namespace) -> None:
  with processes.stop_signal() as stopped:
    cdm = delete.open_run(args.run, stopped)
    count = processes.from_first(lambda: add(cdm, args.source))
  if processes.first():
    print(f"{args.source}: {count} records")
  cdm_run.run(cdm.config, cdm.workdir)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="jaxunlearn cdm add", description=__doc__.split("\n")[0])
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument("--source", required=True, help="its name in the split")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: command(args), args.run, together=True)


if __name__ == "__main__":
  sys.exit(start())
