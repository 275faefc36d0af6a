"""Rewrite a run whose files and ledger name its records, as one in commitments (keys.py).

    jaxunlearn cdm migrate-ledger --run=runs/cdm

For runs that an older version made. Their chain is first checked, and the data read once, as it has
to be what it was. Then every record gets a key; sources.csv and the lists of the shards get
commitments; records.txt goes; and the chain is written anew, without the hashes that followed from
names alone. It has another head: keep the one that is printed where you kept the old one.

Exit codes: 0 done, 2 bad input, or an old ledger that does not hold.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from jaxunlearn import data, weights
from jaxunlearn.cdm import delete, keys, ledger, sources
from jaxunlearn.cdm.model import write_sources
from jaxunlearn.commands import guard
from jaxunlearn.data import roll
from jaxunlearn.reports import writer

STAGE = "migrating"  # RUN/migrating: the new files, of which the ledger is the last to be written
NAMING = re.compile(r"sources\.csv|shards/[^/]+/records\.txt")  # files that named records
OWN = {"line", "files", "previous", "sha256", "fingerprint", "plan"}  # fields that are made anew


def migrate(run: pathlib.Path, records: data.Records) -> ledger.Summary:
  """Migrates the run of those records; returns what now holds. One that was stopped goes on.

  Raises:
    Broken: the old ledger does not hold.
    ValueError: a run that is migrated already, or data that is not what it was.
  """
  stage = run / STAGE
  if not (stage / ledger.FILE).exists():
    shutil.rmtree(stage, ignore_errors=True)
    _prepare(run, stage, records)
  for path in sorted(path for path in stage.rglob("*") if path.is_file()):
    if path.name != ledger.FILE:
      path.replace(run / path.relative_to(stage))
  for old in (run / "deletions").glob("*.json"):
    writer.replace(old, json.dumps(_plain(json.loads(old.read_text())), indent=2) + "\n")
  (run / roll.FILE).unlink(missing_ok=True)
  (stage / ledger.FILE).replace(run / ledger.FILE)
  shutil.rmtree(stage)
  return ledger.verify(run)


def _prepare(run: pathlib.Path, stage: pathlib.Path, records: data.Records) -> None:
  """Writes the new files under `stage`."""
  text = (run / sources.FILE).read_text()
  if not text.startswith("id,"):
    raise ValueError(f"{run} is migrated already: its {sources.FILE} has commitments")
  ledger.verify(run)
  named = sources.parse(text)
  mine = sources.of_ids(records, list(named))
  _check(run, mine)
  stage.mkdir()
  book = keys.Keys(stage)
  book.add(mine)
  opened = book.of_ids(named)
  files = write_sources(stage, {opened[name].commitment: s for name, s in named.items()})
  new = [path.relative_to(stage).as_posix() for path in files]
  chain: list[bytes] = []
  for line in ledger.Ledger(run).lines():
    chain.append(ledger.line_of(chain, _plain(line)))
  facts: dict[str, Any] = {"records": len(named), "old_lines": len(chain)}
  facts["files"] = dict(zip(new, map(weights.sha256, files), strict=True))
  chain.append(ledger.line_of(chain, ledger.stamped("migrated", facts)))
  writer.replace(stage / ledger.FILE, b"".join(line + b"\n" for line in chain))


def _check(run: pathlib.Path, records: data.Records) -> None:
  """Raises ValueError where records.txt is there and has others."""
  if not (path := run / roll.FILE).exists():
    return
  now = {("", o.id): roll.Entry("kept", o.mark) for o in keys.openings(records)}
  then = {key: roll.Entry("kept", e.mark) for key, e in roll.read(path).items() if key in now}
  roll.compare(run, then, now, "Restore it, and migrate again")


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
  """Facts of a line, or of a deletion, without what follows from the names of records alone."""
  out = {name: value for name, value in facts.items() if name not in OWN}
  if plan := facts.get("plan"):
    out["plan"] = [{k: v for k, v in item.items() if k != "first_seen"} for item in plan]
  if facts.get("event") == "proof":
    out["fingerprint"] = facts["fingerprint"]  # of parameters
  if files := {k: v for k, v in facts.get("files", {}).items() if not NAMING.fullmatch(k)}:
    out["files"] = files
  return out


def command(run: pathlib.Path) -> None:
  cdm = delete.open_run(run)
  found = migrate(run, cdm.setup.train)
  print(
    f"{len(cdm.keys.read())} records committed; {found.lines} lines and {found.files} files hold"
  )
  print(f"head {found.head}")


def start(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn cdm migrate-ledger", description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  args = parser.parse_args(argv)
  return guard.guarded(lambda: command(args.run))


if __name__ == "__main__":
  sys.exit(start())
