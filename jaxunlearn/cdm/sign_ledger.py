"""Sign the ledger of a run as it is: a checkpoint of its Merkle tree, for others to keep.

    openssl genpkey -algorithm ed25519 -out log.pem
    jaxunlearn cdm sign-ledger --run=runs/cdm --origin=example.org/runs/7 --sign_key=log.pem
      --out=log.checkpoint

Prints the public key, which others need. `--origin` is the log's name, always the same for a run. A
checkpoint that stands at --out already has to be of the same ledger, or it is not replaced.

Exit codes: 0 done, 2 bad input, or a ledger that does not hold.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxunlearn.cdm.log import Log
from jaxunlearn.commands import guard
from jaxunlearn.proofs import notes
from jaxunlearn.reports import writer


def command(args: argparse.Namespace) -> None:
  signer, log = notes.read_signer(args.origin, args.sign_key), Log(args.run)
  if args.out.exists():
    log.check(notes.parse_checkpoint(args.out.read_text()), args.out)
  head = log.head(args.origin)
  args.out.parent.mkdir(parents=True, exist_ok=True)
  writer.replace(args.out, signer.sign(head.text))
  print(f"signed {head.size} lines: {args.out}")
  print(f"public key {signer.verifier}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn cdm sign-ledger", description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument("--origin", required=True, help="the log's name: example.org/runs/7")
  parser.add_argument("--sign_key", type=pathlib.Path, required=True, help="Ed25519, a PEM file")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="the checkpoint to write")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: command(args))


if __name__ == "__main__":
  sys.exit(start())
