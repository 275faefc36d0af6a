"""Check the ledger of a compartmentalised run, line by line, and every file that it names.

    jaxunlearn cdm verify --run=runs/cdm [--head=HASH]

Prints what holds, and the head of the chain. Keep the head elsewhere and give it to a later check:
it finds lines that were cut off, and a chain that was written anew (ledger.py says why). Of the
keys it says which records they open (keys.py); a copy of a run without its keys holds as well.

Exit codes: 0 all holds, 2 bad input, 4 something does not fit: the first such line or file.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxunlearn import errors
from jaxunlearn.cdm import ledger, sources
from jaxunlearn.cdm.keys import Keys

BROKEN = 4  # main.py has the other exit codes


def cli(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn cdm verify", description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument("--head", default="", help="what an earlier check printed")
  args = parser.parse_args(argv)
  try:
    found, opened = ledger.verify(args.run, args.head), keys_of(args.run)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BROKEN if isinstance(error, ledger.Broken) else errors.BAD_INPUT
  print(f"{found.lines} lines and {found.files} files hold; {found.removed} removed paths are gone")
  if opened:
    print(opened)
  print(f"head {found.head}")
  return 0


def keys_of(run: pathlib.Path) -> str:
  """What the keys of a run open; "" where no record is committed to."""
  path = run / sources.FILE
  if not path.exists() or not path.read_text().startswith(sources.COMMITMENT):
    return ""
  named, known = sources.read(path), Keys(run).read()
  said = f"keys open {len(named.keys() & known.keys())} of {len(named)} records"
  if left := len(known.keys() - named.keys()):
    said += f", and {left} that are deleted; finish with `jaxunlearn cdm delete --resume`"
  return said


if __name__ == "__main__":
  sys.exit(cli())
