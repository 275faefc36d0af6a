"""The keys of a run: what opens the commitments that its records stand in it as.

A record stands in the files of a run as a commitment alone: HMAC-SHA256 (RFC 2104) of its id and
the SHA-256 of its picture, under a random key of its own. RUN/keys.txt, which its owner alone can
read, holds what opens them, a line a record, between tabs:

    key     64 hexadecimal digits
    sha256  of the record's file, or of its pixels where it has none
    mark    what tells that the record changed: roll.py
    id

Deleting a record destroys its line. The ledger keeps the commitment, which nobody can tell from a
random number any more.
"""

import hashlib
import hmac
import os
import pathlib
import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from jaxunlearn.data import Records, roll

FILE = "keys.txt"
KEY_BYTES = 32


class Opening(NamedTuple):
  """What opens a record's commitment, and shows that the record is what was committed to."""

  key: str  # hexadecimal, as the digest
  sha256: str
  mark: str
  id: str

  @property
  def commitment(self) -> str:
    """HMAC-SHA256(key, id || sha256), 64 hexadecimal digits."""
    said = self.id.encode() + bytes.fromhex(self.sha256)
    return hmac.digest(bytes.fromhex(self.key), said, "sha256").hex()


class Keys:
  """RUN/keys.txt."""

  def __init__(self, run: pathlib.Path):
    self.path = pathlib.Path(run) / FILE

  def read(self) -> dict[str, Opening]:
    """commitment -> what opens it; raises ValueError where the file is damaged."""
    text = self.path.read_bytes().decode() if self.path.exists() else ""
    openings = [self._parsed(n, line) for n, line in enumerate(text.split("\n")[:-1], 1)]
    return {opening.commitment: opening for opening in openings}

  def of_ids(self, ids: Collection[str]) -> dict[str, Opening]:
    """id -> what opens its commitment, of those ids that have one."""
    wanted = set(ids)
    return {opening.id: opening for opening in self.read().values() if opening.id in wanted}

  def add(self, records: Records) -> None:
    """Commits to records that the run did not have."""
    new = openings(records)
    self._write([*self.read().values(), *new])

  def keep(self, commitments: Collection[str]) -> None:
    """Destroys the keys of all other records."""
    self._write(opening for name, opening in self.read().items() if name in commitments)

  def fingerprint(self, records: Records) -> str:
    """SHA-256 of the records' commitments, one a line, from their pictures as they are now."""
    known = self.of_ids(records.ids.tolist())
    pairs = zip(records.ids.tolist(), records.sha256().tolist(), strict=True)
    now = [known[name]._replace(sha256=digest).commitment for name, digest in pairs]
    return hashlib.sha256(listed(now).encode()).hexdigest()

  def check(self, records: Records) -> None:
    """Raises ValueError where records that were committed to are missing or others now."""
    then = {("", o.id): roll.Entry("kept", o.mark) for o in self.read().values()}
    pairs = zip(records.ids.tolist(), roll.marks(records), strict=True)
    now = {("", name): roll.Entry("kept", mark) for name, mark in pairs}
    advice = "Restore it; `jaxunlearn cdm delete` takes a record out of a run"
    roll.compare(self.path.parent, then, {k: v for k, v in now.items() if k in then}, advice)

  def _parsed(self, number: int, line: str) -> Opening:
    fields = line.split("\t", 3)
    try:
      opening = Opening(*fields)
      if opening.id and len(bytes.fromhex(opening.key + opening.sha256)) == 2 * KEY_BYTES:
        return opening
    except (TypeError, ValueError):
      pass
    raise ValueError(f"{self.path} is damaged at line {number}; put its copy back")

  def _write(self, openings: Iterable[Opening]) -> None:
    """Replaces the file as a whole, then overwrites the bytes that it had on disk."""
    text = "".join("\t".join(opening) + "\n" for opening in openings)
    temporary = self.path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
      file.write(text.encode())
      file.flush()
      os.fsync(file.fileno())
    old = self.path.open("r+b") if self.path.exists() else None
    temporary.replace(self.path)
    _sync(self.path.parent)
    if old is not None:
      with old:
        old.write(bytes(os.fstat(old.fileno()).st_size))
        os.fsync(old.fileno())


def _sync(folder: pathlib.Path) -> None:
  """Returns once the folder's names are on disk."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def openings(records: Records) -> list[Opening]:
  """What opens the commitment of each, under new keys."""
  rows = zip(records.sha256().tolist(), roll.marks(records), records.ids.tolist(), strict=True)
  return [Opening(secrets.token_hex(KEY_BYTES), *row) for row in rows]


def listed(commitments: Sequence[str]) -> str:
  """The text of RUN/shards/NAME/records.txt."""
  return "".join(f"{commitment}\n" for commitment in commitments)
