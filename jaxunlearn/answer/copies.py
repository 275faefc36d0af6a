"""Every other copy of some records that the project knows of, and what is to become of it.

Copies are the pictures in the data and in caches, grids that show them, and models that were
trained on them: checkpoints, the models that a run started from, runs that descend from those, and
exports of any of them. What can be made again, or is not needed any more, goes with `--purge`; all
else is named, to be deleted by hand.
"""

import contextlib
import dataclasses
import datetime
import pathlib
import shutil
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from jaxunlearn import data, latents
from jaxunlearn.answer import standing
from jaxunlearn.answer.standing import Runs
from jaxunlearn.latents import cache
from jaxunlearn.reports import lineage, report
from jaxunlearn.weights import layout

BY_HAND, PURGE, PURGED, NOTHING = "by hand", "with --purge", "deleted now", "nothing to do"
SHOWN = ("target*.png", "*_nearest.png", "before*.png")  # grids that show a record, or may


@dataclasses.dataclass(frozen=True)
class Copy:
  """One copy; `made` is when its file or folder was last written, UTC."""

  what: str
  path: str
  made: str
  how: str  # it goes: BY_HAND, PURGE, PURGED, or NOTHING
  note: str
  keep_until: str = ""  # for the owner to fill in


class Line(NamedTuple):
  """The runs around the one in question."""

  run: pathlib.Path
  ancestors: list[dict[str, str]]
  others: list[pathlib.Path]  # all runs under the root, without it
  exports: dict[str, list[pathlib.Path]]  # what lies under the root, by name

  @classmethod
  def of(cls, run: pathlib.Path, root: pathlib.Path) -> "Line":
    others = [path for path in lineage.runs(root) if path.resolve() != run.resolve()]
    return cls(run, lineage.ancestors(run), others, lineage.exports(root))


def of_pictures(records: data.Records, ids: Collection[str], source: str) -> Iterator[Copy]:
  """The pictures in the data, and their byte copies."""
  mask = np.isin(records.ids, list(ids))
  mine = records.ids[mask | records.copies(mask)].tolist()
  if not records.folder:
    count = f"{len(mine)} record{'s' * (len(mine) != 1)}"
    note = f"{count} of the data source {source}, which keeps its own"
    yield Copy("picture", f"{source}: {mine[0]}", "", BY_HAND, note)
    return
  for name in mine:
    path = pathlib.Path(records.folder) / name
    note = "and wherever it came from; take it out of the data before the next training"
    yield Copy("picture", str(path), made(path), BY_HAND if path.exists() else NOTHING, note)


def of_latents(codec: object, records: data.Records, ids: Collection[str]) -> Iterator[Copy]:
  """The latents of the pictures in the cache of this user."""
  if not isinstance(codec, latents.Codec):
    return
  mask = np.isin(records.ids, list(ids))
  mine = records.take(np.flatnonzero(mask | records.copies(mask)))
  for path in map(pathlib.Path, cache.paths(codec, mine).tolist()):
    if path.exists():
      yield Copy("latents", str(path), made(path), PURGE, "made anew where they are asked for")


def of_run(run: pathlib.Path) -> Iterator[Copy]:
  """What the run that deleted them still has of before: checkpoints, grids, its page."""
  for path in steps(run)[:-1]:
    yield Copy("checkpoint", str(path), made(path), PURGE, "older than the end of the deletion")
  for path in sorted((run / "damaged").glob("*")):
    yield Copy("checkpoint", str(path), made(path), PURGE, "set aside as damaged")
  shown = sorted({path for name in SHOWN for path in (run / "samples").glob(name)})
  for path in shown:
    yield Copy("samples", str(path), made(path), PURGE, "shows the record, or may")
  for name in ("samples.npz", "features"):
    if (path := run / name).exists():
      yield Copy("samples", str(path), made(path), BY_HAND, "of the model after it, for other runs")
  if shown and (path := run / "report.html").exists():
    yield Copy("page", str(path), made(path), PURGE, "has these grids in it; written again without")


def of_models(line: Line, runs: Runs) -> Iterator[Copy]:
  """The models that it started from, and other runs, with their exports."""
  yield from _exports(line, line.run, "made from the run; its card says from which step")
  seen = {line.run.resolve()}
  for one in line.ancestors:
    path = pathlib.Path(one["path"])
    if not one["path"]:
      note = "published; it was trained on the records, as far as this run tells"
      yield Copy("model", one["origin"], "", BY_HAND, note)
    elif not lineage.is_run(path):
      note = f"{one['field']} of the run; no run, or no longer here"
      yield Copy("model", str(path), made(path), BY_HAND if path.exists() else NOTHING, note)
    else:
      seen.add(path.resolve())
      yield from _model(line, path, f"the run started from it; {runs.holds(path)}", runs)
  for path in line.others:
    if path.resolve() not in seen:
      yield from _model(line, path, runs.holds(path), runs)


def _model(line: Line, path: pathlib.Path, note: str, runs: Runs) -> Iterator[Copy]:
  """A run, and its exports, where it holds something; its checkpoints are all of its steps."""
  held = runs.holds(path)
  if held not in (*standing.HOLDS, standing.DELETED):
    return
  count = len(steps(path))
  told = f"{note}; {count} checkpoint{'s' * (count != 1)}"
  how = BY_HAND if held in standing.HOLDS else NOTHING
  yield Copy("model", str(path), made(path / lineage.CONFIG), how, told)
  yield from _exports(line, path, f"of a model that was {held}" if how == BY_HAND else held)


def _exports(line: Line, run: pathlib.Path, note: str) -> Iterator[Copy]:
  """Those that the run lists: where they were written, and where they are found now."""
  for one in lineage.read(run)["exports"]:
    paths = {pathlib.Path(one["path"]), *line.exports.get(one["export"], ())}
    for path in sorted(paths):
      if lineage.export_name(path) == one["export"]:
        told = f"step {one['step']}, {note}; tell those who got it"
        yield Copy("export", str(path), str(one["time"]), BY_HAND, told)
      else:
        yield Copy("export", str(path), str(one["time"]), BY_HAND, f"no longer there; {note}")


def steps(run: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints of a run of one model, oldest first."""
  paths = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
  return sorted(paths, key=lambda path: int(path.name))


def purge(copies: Collection[Copy], run: pathlib.Path) -> list[Copy]:
  """Deletes what may go, and writes the page again without the grids; the list as it is then."""
  out = []
  for one in copies:
    if one.how == PURGE and one.what != "page":
      path = pathlib.Path(one.path)
      shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out.append(dataclasses.replace(one, how=PURGED) if one.how == PURGE else one)
  if any(one.how == PURGED and one.what == "page" for one in out):
    report.write(run)
  return out


def made(path: pathlib.Path) -> str:
  """When it was last written, UTC; "" of what is not there."""
  with contextlib.suppress(OSError):
    seconds = path.stat().st_mtime
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
  return ""


def config_of(run: pathlib.Path) -> dict:
  """config.json of a run; raises ValueError where it is no run."""
  if not lineage.is_run(run):
    raise ValueError(f"{run} is no run's working directory; give one that has config.json")
  return layout.read_json(run / lineage.CONFIG)
