"""Prove to others that one record was deleted, and show them no other.

    jaxunlearn cdm proof --run=runs/cdm --checkpoint=log.checkpoint --sign_key=log.pem
      --receipt=receipts/17.json --out=proofs/17

Writes OUT/deletion.tlog-proof, which leads from the ledger's line to the signed checkpoint, and
OUT/deletion.json, a signed in-toto statement. docs/verify_deletion.py checks both without this
package. The record is named by its receipt, or by `--commitment`, which `cdm delete` printed.

Exit codes: 0 done, 2 bad input, or a ledger that does not hold.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxunlearn.cdm import receipts
from jaxunlearn.cdm.keys import Keys
from jaxunlearn.cdm.log import Log
from jaxunlearn.commands import guard
from jaxunlearn.proofs import notes, statement
from jaxunlearn.reports import writer


def command(args: argparse.Namespace) -> None:
  commitment = receipts.read(args.receipt).commitment if args.receipt else args.commitment
  if not args.checkpoint.is_file():
    raise ValueError(
      f"{args.checkpoint} is not a file; write one with `jaxunlearn cdm sign-ledger`"
    )
  note = args.checkpoint.read_text()
  known = notes.parse_checkpoint(note)
  signer, log = notes.read_signer(known.origin, args.sign_key), Log(args.run)
  signer.open(note)
  log.check(known, args.checkpoint)
  index = log.deletion(commitment)
  if index >= known.size:
    raise ValueError(
      f"{args.checkpoint} is of {known.size} lines and the deletion is line {index + 1}; sign the "
      "ledger again"
    )
  if commitment in Keys(args.run).read():
    raise ValueError(
      f"the key of {commitment[:12]}... is still in {args.run}; finish with `cdm delete --resume`"
    )
  said = statement.statement(log.lines[index], known, method(log, index))
  args.out.mkdir(parents=True, exist_ok=True)
  writer.replace(args.out / "deletion.tlog-proof", log.proof(index, note))
  signed = json.dumps(statement.envelope(said, signer), indent=2) + "\n"
  writer.replace(args.out / "deletion.json", signed)
  print(f"proved that line {index + 1} of {known.size} deleted {commitment}: {args.out}")


def method(log: Log, index: int) -> dict[str, Any]:
  """How the deletion of that line was done, and whether training anew gave the same bits."""
  lines = [json.loads(line) for line in log.lines]
  at = max((i for i in range(index) if lines[i]["event"] == "delete"), default=-1)
  if at < 0:
    return {"name": "unknown"}
  last = next((i for i in range(at + 1, len(lines)) if lines[i]["event"] == "delete"), len(lines))
  if "deleted_source" in lines[at]:
    return {"name": "sourceDropped"}
  found = {line["source"]: line["equal"] for line in lines[at:last] if line["event"] == "proof"}
  proven = all(found.get(item["source"], False) for item in lines[at]["plan"])
  return {"name": "retrainedWithout", "equalToNeverTrained": proven}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn cdm proof", description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument(
    "--checkpoint", type=pathlib.Path, required=True, help="what `cdm sign-ledger` wrote"
  )
  parser.add_argument("--sign_key", type=pathlib.Path, required=True, help="Ed25519, a PEM file")
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument("--receipt", type=pathlib.Path, help="what `cdm delete --receipt` wrote")
  which.add_argument("--commitment", help="64 digits that `cdm delete` printed")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder for both files")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: command(args))


if __name__ == "__main__":
  sys.exit(start())
