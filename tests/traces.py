"""Where a run names a record: a search of every byte of every file, also inside archives and PNGs.

It knows nothing of how a run is laid out, and asks the package for nothing.
"""

import base64
import hashlib
import io
import json
import pathlib
import sqlite3
import zipfile

import numpy as np
from PIL import Image


def of(run, name, content, pixels):
  """{path: what was found} of a record's id, file name, digest, bytes and pixels (uint8)."""
  wanted = needles(name, content, pixels)
  found = {}
  for path in sorted(pathlib.Path(run).rglob("*")):
    texts = [path.name.encode(), *(inside(path) if path.is_file() else [])]
    if hits := sorted({what for what, n in wanted for text in texts if n in text}):
      found[path.relative_to(run).as_posix()] = hits
  return found


def of_picture(run, folder, name):
  """The paths of `of`, for a record that is a file in a folder of pictures."""
  path = folder / name
  return set(of(run, name, path.read_bytes(), np.asarray(Image.open(path))))


def needles(name, content, pixels):
  """(what, bytes) that tell of the record."""
  digests = [hashlib.sha256(content), hashlib.sha256(pixels.tobytes())]
  names = [name, json.dumps(name)[1:-1], pathlib.PurePosixPath(name).name]
  out = [("name", text.encode(code)) for text in names for code in ("utf-8", "utf-16-le")]
  for digest in digests:
    raw, text = digest.digest(), digest.hexdigest()
    for form in (raw, text.encode(), text.upper().encode(), text[:16].encode()):
      out.append(("digest", form))
    out.append(("digest", base64.b64encode(raw)))
  scaled = pixels.astype(np.float32) / 127.5 - 1
  bodies = (content, pixels.tobytes(), scaled.tobytes(), base64.b64encode(pixels.tobytes()))
  return out + [("pixels", body) for body in bodies]


def inside(path):
  """A file's bytes, and those of what it packs."""
  raw = path.read_bytes()
  yield raw
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      yield from (archive.read(name) for name in archive.namelist())
  elif raw.startswith(b"SQLite format 3"):
    yield "\n".join(sqlite3.connect(path).iterdump()).encode()
  elif raw.startswith(b"\x89PNG"):
    yield np.asarray(Image.open(io.BytesIO(raw))).tobytes()
