"""A receipt: what opens one record's commitment, given to who asked before the run forgets it.

A line of JSON a record: `commitment`, `key`, `id` and `sha256`. With it, and the proof that the
ledger has the commitment as deleted (proof.py), its owner can show that the record was meant; who
has neither can tell nothing of it.
"""

import json
import os
import pathlib
from collections.abc import Iterable

from jaxunlearn.cdm.keys import Opening

FIELDS = ("key", "sha256", "id")


def write(path: pathlib.Path, run: pathlib.Path, openings: Iterable[Opening]) -> None:
  """Writes receipts to a new file that its owner alone can read.

  Raises:
    ValueError: a path inside the run, which is to forget them, or of a file that is there.
  """
  if path.resolve().is_relative_to(run.resolve()):
    raise ValueError(f"receipt {path} is inside the run, which is to forget it; use another folder")
  lines = [{"commitment": o.commitment, **{f: getattr(o, f) for f in FIELDS}} for o in openings]
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  except OSError as error:
    raise ValueError(f"cannot write receipt {path} ({error}); use another path") from error
  with os.fdopen(descriptor, "w") as file:
    file.writelines(json.dumps(line) + "\n" for line in lines)
    file.flush()
    os.fsync(file.fileno())


def read(path: pathlib.Path) -> Opening:
  """The one receipt in a file; raises ValueError where it holds none, several or another."""
  try:
    lines = path.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    opening = Opening(mark="", **{name: found[0][name] for name in FIELDS})
    fits = opening.commitment == found[0]["commitment"]
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is no receipt; give what `cdm delete --receipt` wrote") from error
  if len(found) > 1:
    raise ValueError(f"{path} has receipts of {len(found)} records; give a file with one of them")
  if not fits:
    raise ValueError(f"{path} was changed: its key does not open its commitment; put its copy back")
  return opening
