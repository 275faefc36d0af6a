"""Ids of records as people and other systems write them: lists in files, paths, digests.

A list has one id a line, in UTF-8 or, with a byte order mark, UTF-16 or UTF-32. An id that no
record has is read once more as a path: with the slashes of Windows, `./` in front, the folder of
the data in front, in quotes, as a file:// address, or in another normal form of Unicode (macOS
takes names apart: NFD). A digest is `sha256:HEX`, or 64 hexadecimal digits alone, in any case.
"""

import codecs
import os
import pathlib
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

SHA256 = "sha256:"
MARKS = (  # those of UTF-32 begin with those of UTF-16
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
  (codecs.BOM_UTF8, "utf-8-sig"),
)
_HEX = re.compile("[0-9a-fA-F]{64}")


def as_ids(field: str, value: Any) -> tuple[str, ...]:
  """The ids of a config field: some, one alone, or none.

  Raises:
    ValueError: something that is no text, like a number that lost its quotes.
  """
  values = (value,) if isinstance(value, str) or not isinstance(value, Sequence) else tuple(value)
  for one in values:
    if not isinstance(one, str):
      kind = "number" if isinstance(one, int | float) else type(one).__name__
      if one is None:
        raise ValueError(f"{field} holds None; leave it out, or write ids in quotes")
      raise ValueError(
        f"{field} holds {one}, which is a {kind}; write ids in quotes, like ('{one}.jpg',)"
      )
  return tuple(filter(None, values))


def read(path: pathlib.Path, field: str) -> list[str]:
  """The ids of a list; raises ValueError where it is none."""
  if not path.is_file():
    raise ValueError(f"{field} {str(path)!r} is not a file; give one record id a line")
  raw = path.read_bytes()
  encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
  try:
    text = raw.decode(encoding)
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{field} {str(path)!r} is not in {encoding} ({error.reason} at byte {error.start}); save it "
      "as UTF-8"
    ) from error
  if "\0" in text:
    raise ValueError(f"{field} {str(path)!r} holds zero bytes; save it as UTF-8 text")
  found = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
  if not found:
    raise ValueError(f"{field} {str(path)!r} is empty; give one record id a line")
  return found


def digest(name: str) -> str:
  """The SHA-256 that a name stands for, in lower case; "" where it stands for none."""
  if name.lower().startswith(SHA256):
    return name[len(SHA256) :].lower()
  return name.lower() if _HEX.fullmatch(name) else ""


def forms(name: str, folder: str = "") -> Iterator[str]:
  """What the name may be as a record's id, the likeliest first; records lie in the folder."""
  for text in dict.fromkeys((name, name.strip("\"'"), _address(name))):
    path = posixpath.normpath(text.replace("\\", "/"))
    yield composed(path)
    if folder:
      whole = os.path.abspath(path)
      for base in (os.path.abspath(folder), os.path.realpath(folder)):
        if whole.startswith(base + "/"):
          yield composed(whole[len(base) + 1 :])


def composed(name: str) -> str:
  """The normal form NFC of Unicode."""
  return unicodedata.normalize("NFC", name)


def _address(name: str) -> str:
  """The path of a file:// address."""
  return urllib.parse.unquote(name.removeprefix("file://")) if name.startswith("file:") else name
