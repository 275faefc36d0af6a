"""Check the ledger of a compartmentalised run, line by line, and every file that it names.

    jaxunlearn cdm verify --run=runs/cdm [--head=HASH]

Prints what holds, and the head of the chain. Keep the head elsewhere and give it to a later check:
it finds lines that were cut off, and a chain that was written anew (ledger.py says why).

Exit codes: 0 all holds, 2 bad input, 4 something does not fit: the first such line or file.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxunlearn import errors
from jaxunlearn.cdm import ledger

BROKEN = 4  # main.py has the other exit codes


def cli(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn cdm verify", description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument("--head", default="", help="what an earlier check printed")
  args = parser.parse_args(argv)
  try:
    found = ledger.verify(args.run, args.head)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BROKEN if isinstance(error, ledger.Broken) else errors.BAD_INPUT
  print(f"{found.lines} lines and {found.files} files hold; {found.removed} removed paths are gone")
  print(f"head {found.head}")
  return 0


if __name__ == "__main__":
  sys.exit(cli())
