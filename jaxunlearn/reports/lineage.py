"""What a run was made from, and what was made from it: RUN/lineage.json, and one in each export.

    began    when the run was first launched, UTC
    from     what it reads of others: {field, origin, path, config}, of which `config` is the
             SHA-256 of the other run's config.json, so that a run is found where it was moved
    exports  {export, path, step, weights, time}; an export has the same name `export`, a random one

An export's own file says no path and no digest: it is given to others. Runs that descend from one
are found by a walk over all runs under a root; runs of older versions by their config.json.
"""

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from jaxunlearn.data import walk
from jaxunlearn.reports import writer

FILE = "lineage.json"
CONFIG = "config.json"
KEYS = {"train", "data"}  # of every run's config.json
NAMES = ("assets:", "hub:")  # origins that are no run
SAMPLES = ("samples:", "all_samples:")  # streams of another run's samples


def begin(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Says where a run starts from, at its first launch; no time for a run of an older version."""
  if not (workdir / FILE).exists():
    older = any((workdir / name).exists() for name in ("checkpoints", "shards"))
    began = "" if older else now()
    _write(workdir, {"began": began, "from": origins(config), "exports": []})


def exported(run: pathlib.Path, step: int, weights: str, earlier: str = "") -> dict[str, Any]:
  """What stands in an export of the run; `earlier` is the name of the one that it replaces."""
  name = earlier or secrets.token_hex(8)
  where = run.resolve().name
  return {"export": name, "run": where, "step": step, "weights": weights, "time": now()}


def note_export(run: pathlib.Path, out: pathlib.Path, facts: Mapping[str, Any]) -> None:
  """Adds an export to its run; a run that cannot be written to is left as it is."""
  known = read(run)
  mine = {name: facts[name] for name in ("export", "step", "weights", "time")}
  others = [one for one in known["exports"] if one["export"] != facts["export"]]
  with contextlib.suppress(OSError):
    _write(run, {**known, "exports": [*others, {**mine, "path": str(out.resolve())}]})


def read(run: pathlib.Path) -> dict[str, Any]:
  """The lineage of a run; of one that has none yet, what its config says."""
  if found := _json(run / FILE):
    return {"began": "", "from": [], "exports": [], **found}
  return {"began": "", "from": origins(_json(run / CONFIG)), "exports": []}


def export_name(folder: pathlib.Path) -> str:
  """The name of the export in that folder; "" where there is none."""
  return str(_json(folder / FILE).get("export", ""))


def origins(config: Mapping[str, Any]) -> list[dict[str, str]]:
  """What a run of that config reads of other models."""
  named = {"init_from": config.get("init_from", "")}
  named["method.onto"] = dict(config.get("method") or {}).get("onto", "")
  named["codec"] = dict(config.get("codec") or {}).get("path", "")
  for stream, take in dict(config.get("streams") or {}).items():
    text = take if isinstance(take, str) else dict(take).get("take", "")
    if text.startswith(SAMPLES):
      named[f"streams.{stream}"] = text.partition(":")[2]
  return [_origin(field, origin) for field, origin in named.items() if origin]


def _origin(field: str, origin: str) -> dict[str, str]:
  if origin.startswith(NAMES):
    return {"field": field, "origin": origin, "path": "", "config": ""}
  path = pathlib.Path(origin).expanduser().resolve()
  return {"field": field, "origin": origin, "path": str(path), "config": digest(path)}


def digest(run: pathlib.Path) -> str:
  """The SHA-256 of its config.json; "" where there is none."""
  path = run / CONFIG
  return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def runs(root: pathlib.Path) -> list[pathlib.Path]:
  """Every run under a folder, sorted."""
  return sorted(path for path in _folders(root) if is_run(path))


def is_run(folder: pathlib.Path) -> bool:
  """Whether it is a run's working directory; one of compartments, or an autoencoder's, is too."""
  return _json(folder / CONFIG).keys() >= KEYS


def exports(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """The folders under a root that hold an export, by its name."""
  out: dict[str, list[pathlib.Path]] = {}
  for folder in sorted(_folders(root)):
    if name := export_name(folder):
      out.setdefault(name, []).append(folder)
  return out


def _folders(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """All below a root that may hold a run; what runs write is not entered."""
  for place, below, _ in os.walk(root):
    folder = pathlib.Path(place)
    written = walk.WRITTEN if is_run(folder) else ()
    below[:] = [name for name in below if name not in written and not name.startswith(".")]
    yield folder


def ancestors(run: pathlib.Path) -> list[dict[str, str]]:
  """What a run started from, and what that started from, as far as it is there; nearest first."""
  out: list[dict[str, str]] = []
  todo, seen = [run.resolve()], set()
  while todo:
    for one in read(todo.pop(0))["from"]:
      if one["origin"] not in seen:
        seen.add(one["origin"])
        out.append(one)
        todo += [pathlib.Path(one["path"])] if one["path"] else []
  return out


def descendants(run: pathlib.Path, among: list[pathlib.Path]) -> list[pathlib.Path]:
  """Those of the runs that were made from it, or from one that was, nearest first."""
  out: list[pathlib.Path] = []
  todo = [run]
  while todo:
    parent = todo.pop(0)
    path, known = str(parent.resolve()), digest(parent)
    for other in among:
      mine = read(other)["from"]
      made = any(one["path"] == path or (known and one["config"] == known) for one in mine)
      if made and other not in out and other.resolve() != run.resolve():
        out.append(other)
        todo.append(other)
  return out


def now() -> str:
  """UTC, ISO 8601, seconds."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file of JSON; {} where there is none."""
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _write(folder: pathlib.Path, content: Mapping[str, Any]) -> None:
  writer.replace(folder / FILE, json.dumps(content, indent=2) + "\n")
