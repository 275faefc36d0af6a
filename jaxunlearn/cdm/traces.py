"""What files of a run still name a record that was deleted: a search of their bytes.

Looked for: its id, as text and as JSON writes it; the name of its file, where no other record has
it; its SHA-256. Checkpoints hold arrays alone and are not read; an id of digits alone is not found.
"""

import json
import pathlib
from collections.abc import Collection, Iterator

from jaxunlearn.cdm.keys import Opening
from jaxunlearn.cdm.ledger import files_of

JOINS = b"-_"  # beside letters and digits, what a name goes on with


def find(run: pathlib.Path, gone: Collection[Opening], kept: Collection[str]) -> list[str]:
  """The paths, relative to the run, of files that still name one; `kept` are ids that remain."""
  names = {pathlib.PurePosixPath(name).name for name in kept}
  wanted = {needle for opening in gone for needle in _needles(opening, names)}
  out = []
  for path in files_of(run)[1:] if gone else ():
    name = path.relative_to(run)
    if "checkpoints" not in name.parts and path.is_file() and _has(path.read_bytes(), wanted):
      out.append(name.as_posix())
  return out


def _needles(opening: Opening, names: Collection[str]) -> Iterator[bytes]:
  yield opening.sha256.encode()
  file = pathlib.PurePosixPath(opening.id).name
  for text in (opening.id, json.dumps(opening.id)[1:-1], *({file} - {*names})):
    if any(map(str.isalpha, text)):  # a number stands in many a file
      yield text.encode()


def _has(content: bytes, wanted: Collection[bytes]) -> bool:
  return any(_whole(content, needle) for needle in wanted)


def _whole(content: bytes, needle: bytes) -> bool:
  """Whether the name stands there by itself, not as a part of a longer one."""
  at = content.find(needle)
  while at >= 0:
    beside = (content[at - 1 : at], content[at + len(needle) : at + len(needle) + 1])
    if not any(byte.isalnum() or byte in JOINS for byte in beside if byte):
      return True
    at = content.find(needle, at + 1)
  return False
