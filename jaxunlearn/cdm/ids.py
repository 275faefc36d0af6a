"""Print which records a source trains on, one id a line: for who holds the run's keys.

    jaxunlearn cdm ids --run=runs/cdm --source=class-0 > class_0.txt

Without --source, of all sources. The files of a run hold commitments, and its keys.txt opens them
(keys.py). `--config.forget.file` and `jaxunlearn cdm delete --file` take such a list.

Exit codes as jaxunlearn.main.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxunlearn import errors
from jaxunlearn.cdm import keys, sources
from jaxunlearn.commands import guard


def ids(run: pathlib.Path, source: str = "") -> list[str]:
  """The ids of a source's records, or of all, sorted.

  Raises:
    ValueError: no run of compartments, no such source, or keys that do not open every record.
  """
  if not (run / sources.FILE).is_file():
    raise ValueError(f"{run} holds no compartmentalised run; give its working directory")
  members, openings = sources.members(sources.read(run / sources.FILE)), keys.Keys(run).read()
  if source:
    errors.check_choice("source", source, sorted(members))
  wanted = members[source] if source else [name for each in members.values() for name in each]
  if closed := [name for name in wanted if name not in openings]:
    raise ValueError(
      f"{run / keys.FILE} does not open {len(closed)} of {len(wanted)} records; put its copy back"
    )
  return sorted(openings[name].id for name in wanted)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="jaxunlearn cdm ids", description=__doc__.split("\n")[0])
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument("--source", default="", help="the source; left out: all")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: print("\n".join(ids(args.run, args.source))))


if __name__ == "__main__":
  sys.exit(start())
