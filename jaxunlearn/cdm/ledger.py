"""The ledger of a run: an append-only, hash-chained record of what was done, and of its files.

RUN/ledger.jsonl has one JSON object a line:

    line      1, 2, ...
    time      UTC, ISO 8601, seconds
    event     what was done; the facts of the event follow
    files     {path: SHA-256} of files that are there from now on; paths are relative to RUN
    folders   those of which every file is named: nothing else may lie in them, and no folder beside
              them that was not recorded like them
    removed   files and folders that are not there from now on
    previous  SHA-256 of the bytes of the line before it; 64 zeros in the first
    sha256    SHA-256 of this line's bytes as they were before this last field was put in

A later line that names a path again replaces what was said of it. `sha256` finds a line that was
damaged, also the last one, and `previous` one that was changed with care, left out or moved, for
the line after it tells. No line tells on the last: who writes it anew, cuts lines off the end, or
writes the whole chain anew is found only by the head, the hash of the last line, that the owner
keeps elsewhere: every later chain has to have a line of that hash.

A record stands here as its commitment (keys.py), in a line `deleted`, and in no other way: neither
its id nor a hash that follows from it alone.
"""

import datetime
import fcntl
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jaxunlearn import weights

FILE = "ledger.jsonl"
FIRST = "0" * 64
SEAL = len(', "sha256": "') + 64 + len('"}')
FIELDS = ("line", "time", "event", "files", "folders", "removed", "previous", "sha256")
Name = str | pathlib.Path


class Broken(ValueError):
  """The first line or file that is not as the ledger has it."""


class Summary(NamedTuple):  # what `verify` has found to hold
  lines: int
  files: int
  removed: int  # paths that are gone, as they have to be
  head: str  # the hash of the last line


class Ledger:
  """The ledger of one run directory."""

  def __init__(self, run: Name):
    self.run = pathlib.Path(run)
    self.path = self.run / FILE

  def append(
    self, event: str, files: Iterable[Name] = (), removed: Iterable[Name] = (), **facts: Any
  ) -> dict[str, Any]:
    """Writes one line to disk and returns it; several processes may do so at once.

    A torn last line, which a crash left behind, is cut off; a line `mended` says so.

    Args:
      files: that are there now. A folder stands for every file under it, and is closed.
      removed: files and folders that are gone; relative paths are under the run directory.
      facts: of the event, in JSON.

    Raises:
      Broken: the chain is broken already.
      ValueError: a file not there or not of the run, a removed one still there, or a fact that
        has a field's name or is no JSON.
    """
    if taken := sorted(facts.keys() & set(FIELDS)):
      raise ValueError(f"a fact cannot be named {taken[0]!r}, a field of every line; rename it")
    fields = {**self._named(files), "removed": self._gone(removed)}
    facts |= {name: value for name, value in fields.items() if value}
    return self._write([(event, facts)])[-1]

  def extend(self, event: str, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a line of that event for each row of facts, all at once; raises as `append`."""
    if events := [(event, facts) for facts in rows]:
      self._write(events)

  def _write(self, events: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Adds a line for each (event, facts) to those that are there; returns the new ones."""
    with self.path.open("a+b") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      file.seek(0)
      *chain, torn = file.read().split(b"\n")
      _check(chain)
      old = len(chain)
      if torn:
        cut = {"cut_bytes": len(torn), "cut_sha256": _hash(torn)}
        chain.append(line_of(chain, stamped("mended", cut)))
      for event, facts in events:
        chain.append(line_of(chain, stamped(event, facts)))
      file.truncate(file.tell() - len(torn))
      file.write(b"".join(line + b"\n" for line in chain[old:]))
      file.flush()
      os.fsync(file.fileno())
    return [json.loads(line) for line in chain[old:]]

  def lines(self) -> list[dict[str, Any]]:
    """All lines, without a torn last one; raises Broken where the chain is broken."""
    content = self.path.read_bytes() if self.path.exists() else b""
    return _check(content.split(b"\n")[:-1])

  def _named(self, files: Iterable[Name]) -> dict[str, Any]:
    """The fields `files` and `folders`."""
    paths = {self._relative(path): path for given in files for path in files_of(given)}
    if lost := [name for name, path in paths.items() if not path.exists()]:
      raise ValueError(f"{lost[0]} is not in {self.run}; write a file before its line")
    folders = sorted(name for name, path in paths.items() if path.is_dir())
    hashes = {name: weights.sha256(paths[name]) for name in sorted(paths.keys() - set(folders))}
    return {"files": hashes, "folders": folders}

  def _gone(self, removed: Iterable[Name]) -> list[str]:
    names = sorted({self._relative(self.run / path) for path in removed})
    if there := [name for name in names if os.path.lexists(self.run / name)]:
      raise ValueError(f"{there[0]} is still in {self.run}; remove it before its line")
    return names

  def _relative(self, path: Name) -> str:
    name = os.path.relpath(path, self.run)
    if name == os.curdir or name.split(os.sep)[0] == os.pardir:
      raise ValueError(f"{path} is not under {self.run}; a ledger records files of its run")
    return pathlib.Path(name).as_posix()


def files_of(path: Name) -> list[pathlib.Path]:
  """The path and, where it is a folder, every file under it."""
  path = pathlib.Path(path)
  return [path, *sorted(p for p in path.rglob("*") if p.is_symlink() or not p.is_dir())]


def raw_lines(run: Name) -> list[bytes]:
  """The bytes of each line, without its newline.

  Raises:
    Broken: the chain is broken, or its last line is torn.
    ValueError: no ledger there.
  """
  path = pathlib.Path(run) / FILE
  if not path.is_file():
    raise ValueError(f"{run} holds no {FILE}; give the directory of a compartmentalised run")
  *chain, torn = path.read_bytes().split(b"\n")
  _check(chain)
  if torn or not chain:
    raise Broken(
      f"line {len(chain) + 1} of {FILE} is torn, as by a crash: no newline ends it; launch the "
      "run again, and the next line will say what was cut off"
    )
  return chain


def verify(run: Name, head: str = "") -> Summary:
  """Checks every line of a run that nothing is writing to, and every file they name.

  `head` is that of an earlier `Summary`: a line of the chain has to have that hash still.

  Raises:
    Broken: says which line or file is the first that does not fit.
    ValueError: no ledger there, or a head that is no hash.
  """
  chain = raw_lines(run)
  lines = [json.loads(line) for line in chain]
  _check_head(chain, head)
  held = _Held({}, {}, {})
  for line in lines:
    held.take(line)
  for problem in held.problems(pathlib.Path(run)):
    raise Broken(problem)
  return Summary(len(lines), len(held.files), len(held.gone), _hash(chain[-1]))


class _Held(NamedTuple):
  """What the lines say together: paths, and the number of the line that says so."""

  files: dict[str, tuple[int, str]]  # with the hash
  folders: dict[str, int]
  gone: dict[str, int]

  def take(self, line: dict[str, Any]) -> None:
    number, removed, folders = line["line"], line.get("removed", []), line.get("folders", [])
    for path in removed:
      known = [*_under(path, self.files), *_under(path, self.folders)]
      self.gone.update(dict.fromkeys([path, *known], number))
    for path in [*removed, *folders]:
      for said in (self.files, self.folders):
        for name in _under(path, said):
          del said[name]
    for path, digest in line.get("files", {}).items():
      self.files.pop(path, None)  # the order is that of the lines
      self.files[path] = (number, digest)
    self.folders.update(dict.fromkeys(folders, number))
    for path in [*line.get("files", {}), *folders]:  # what is there again has its folders again
      for name in (path, *map(str, pathlib.PurePosixPath(path).parents)):
        self.gone.pop(name, None)

  def problems(self, run: pathlib.Path) -> Iterator[str]:
    """What does not fit: first files as the lines name them, then what should not be there."""
    for name in (*self.files, *self.folders, *self.gone):
      if name.startswith("/") or os.pardir in name.split("/"):
        yield f"{name!r} is not under {run}; a ledger records files of its run"
    for name, (number, digest) in self.files.items():
      if not (run / name).is_file():
        yield f"{name} is missing; line {number} recorded it. Put its copy back"
      elif (now := weights.sha256(run / name)) != digest:
        said = f"its SHA-256 is {now[:12]}..., not {digest[:12]}..."
        yield f"{name} is not what line {number} recorded: {said}. Put its copy back"
    for name, number in self.gone.items():
      if os.path.lexists(run / name):
        yield f"{name} is there again; line {number} removed it. Remove it"
    for folder, number in self.folders.items():
      for path in files_of(run / folder)[1:]:
        name = path.relative_to(run).as_posix()
        if name not in self.files and name not in self.folders:
          yield f"{name} has no line; line {number} recorded the whole of {folder}. Remove it"
    for parent in {(run / folder).parent: None for folder in self.folders}:
      for path in sorted(path for path in parent.glob("*") if path.is_dir()):
        if (name := path.relative_to(run).as_posix()) not in self.folders:
          yield (
            f"{name} has no line, and the folders beside it have. Launch the run again if it was "
            "killed, which makes it anew, or remove it"
          )


def stamped(event: str, facts: dict[str, Any]) -> dict[str, Any]:
  """The facts of an event, and that it happened now."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return {"time": now, "event": event, **facts}


def line_of(chain: list[bytes], fields: dict[str, Any]) -> bytes:
  """The bytes of a line with those fields, after the others of its chain."""
  line = {"line": len(chain) + 1, **fields}
  line["previous"] = _hash(chain[-1]) if chain else FIRST
  return _seal(json.dumps(line, allow_nan=False).encode())


def _seal(line: bytes) -> bytes:
  """The line with its own hash as the last field."""
  return line[:-1] + f', "sha256": "{_hash(line)}"}}'.encode()


def _check(chain: list[bytes]) -> list[dict[str, Any]]:
  """The lines, parsed; raises Broken at the first that does not fit."""
  lines, previous = [], FIRST
  for number, raw in enumerate(chain, 1):
    where = f"line {number} of {FILE}"
    try:
      line = json.loads(raw)
    except ValueError as error:
      raise Broken(f"{where} was changed: it is not JSON ({error}). Put its copy back") from error
    if _seal(raw[:-SEAL] + b"}") != raw:
      raise Broken(f"{where} was changed: its sha256 is not of its bytes. Put its copy back")
    if line.get("line") != number:
      raise Broken(f"{where} is not there: line {line.get('line')} is. Put its copy back")
    if line.get("previous") != previous:
      raise Broken(
        f"{where} does not follow line {number - 1}: its previous is not the hash of that line, so "
        "one of the two was written anew. Put the copy back"
      )
    previous = _hash(raw)
    lines.append(line)
  return lines


def _check_head(chain: list[bytes], head: str) -> None:
  if not re.fullmatch("([0-9a-f]{64})?", head):
    raise ValueError(f"head {head!r} is no SHA-256; give all 64 digits that verify printed")
  if head and head not in map(_hash, chain):
    raise Broken(
      f"no line of {FILE} is the kept head {head[:12]}...: after it was kept, lines up to it were "
      f"cut off or written anew; the last is line {len(chain)}. Put the copy back"
    )


def _under(path: str, names: Iterable[str]) -> list[str]:
  """Those that are the path or lie under it."""
  return [name for name in names if name == path or name.startswith(f"{path}/")]


def _hash(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
