"""A pipeline is a config that lists runs, and the table of their results.

config.runs   name -> the config of a run; a finished run is skipped when launched again;
              run:NAME, in its init_from or a stream, is another of them, which comes before it
config.rows   label -> the names of its runs, one a seed; NAME#PHASE is a phase of NAME
config.columns, config.published, config.out   what the table shows, and where it goes; the column
              `verdict` is made from all runs of the table
config.success   what the columns of reports/success.py ask of a run
config.paired the label of a row that others are compared with, seed by seed (reports/paired.py)
"""

import contextlib
import enum
import fcntl
import json
import math
import pathlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jaxunlearn import errors, fields, train
from jaxunlearn.cdm import run as compartments
from jaxunlearn.evals import statistics
from jaxunlearn.inputs import ranges
from jaxunlearn.latents import train as autoencoding
from jaxunlearn.mesh import processes, programs
from jaxunlearn.reports import audit, paired, success, timing, verdicts

_ANOTHER = re.compile(r"run:([^\"]+)")
LOCK = "lock"  # in the directory of a run: of the launch that is at work there
POLL = 5.0  # seconds between two looks at a run of another launch


class Turn(enum.Enum):
  """What became of a run in this launch."""

  MADE = enum.auto()
  WAITS = enum.auto()  # for a run that another launch is at
  LEFT = enum.auto()  # finished before, or at work in another launch


def run(config: ConfigDict, workdir: pathlib.Path, minutes: float = 0.0) -> dict[str, Any]:
  """Every run in turn under workdir/NAME, then the table; returns its numbers.

  With `minutes`, no attack (NAME@ATTACK) begins when they are over: the table goes without it.

  A run that diverges is recorded as such, and the next one starts. The same command may be
  launched several times at once, to use more cores: each run is taken by one of them, what starts
  from it waits, and the one that ends last writes the table.

  Raises:
    ValueError: as `check`, before the first run; besides, what those raise.
  """
  check(config)
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  programs.keep(workdir / "xla_cache")
  end = time.monotonic() + 60 * minutes if minutes else math.inf
  due = lambda name: "@" not in name or time.monotonic() < end
  told = False
  while True:
    turns = {name: _run_one(name, sub, workdir) for name, sub in config.runs.items() if due(name)}
    if Turn.MADE in turns.values():
      continue  # what waited for another run may have its turn now
    waiting = [name for name, turn in turns.items() if turn is Turn.WAITS]
    if not waiting or time.monotonic() >= end:
      break
    if not told:
      print(f"{waiting[0]} starts from a run that another launch is at: waiting for it")
    told = True
    time.sleep(POLL)
  if time.monotonic() >= end:
    config = _without_unmade(config, workdir)
  return processes.from_first(lambda: _finish(config, workdir))


def _without_unmade(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """The config without the attacks for which no time was left; says which."""
  left = [n for n in config.runs if "@" in n and outcome_of(workdir / n) is None]
  if left:
    print(f"the time is over: {len(left)} attacks were not made, the first is {left[0]}")
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name in left:
      del config.runs[name]
  return config


def check(config: ConfigDict) -> None:
  """Raises ValueError for a field of a run that has no such value, or a run:NAME that is none."""
  if not isinstance(config.get("runs"), ConfigDict):
    shown = ranges.shown(config.get("runs"))
    raise ValueError(f"config.runs is {shown}; name runs, each with a config")
  for name in _ANOTHER.findall(config.runs.to_json()):
    errors.check_choice("run", name, config.runs)
  for name, sub in config.runs.items():
    try:
      fields.check(sub)
    except ValueError as error:
      raise ValueError(f"run {name}: {error}") from error


def _finish(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """The table, where no other launch is still at work on a run of it."""
  left = [name for name in config.runs if outcome_of(workdir / name) is None]
  if left:
    go = "run is" if len(left) == 1 else "runs are"
    print(
      f"{len(left)} {go} still at work in another launch, the first is {left[0]}; that launch "
      "writes the table"
    )
    return {}
  results = summarise(config, workdir)
  out = pathlib.Path(config.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.with_suffix(".json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
  out.with_suffix(".md").write_text(markdown(config, results))
  if config.get("attacks"):
    audit.write(config, results, workdir)
  print(markdown(config, results))
  return results


def run_single(config: ConfigDict, workdir: pathlib.Path) -> Any:
  """A run that is no pipeline: of an autoencoder, of sources, or of one model."""
  if "autoencoder" in config:
    return autoencoding.run(config, workdir)
  return (compartments if "sources" in config else train).run(config, workdir)


def run_alone(config: ConfigDict, workdir: pathlib.Path) -> Any:
  """`run_single`, unless another launch is at work in that directory: raises ValueError then.

  A run that is refused before it has written anything leaves no directory.
  """
  new = not workdir.exists()
  workdir.mkdir(parents=True, exist_ok=True)
  with only_here(workdir / LOCK) as mine:
    if not mine:
      raise ValueError(
        f"another launch is at work in {workdir}; wait until it has ended, or use another --workdir"
      )
    try:
      return run_single(config, workdir)
    finally:
      if new and processes.first() and [*workdir.iterdir()] == [workdir / LOCK]:
        shutil.rmtree(workdir)


def _run_one(name: str, config: ConfigDict, workdir: pathlib.Path) -> Turn:
  """Makes the run, unless it is finished, another launch's, or waits for one."""
  (workdir / name).mkdir(exist_ok=True)
  with only_here(workdir / name / LOCK) as mine:
    if not mine or processes.from_first(lambda: outcome_of(workdir / name)) is not None:
      return Turn.LEFT
    try:
      if (placed := _placed(config, workdir)) is None:
        return Turn.WAITS
      logging.info("run %s", name)
      programs.drop_if_many()
      run_single(placed, workdir / name)
    except train.Diverged as error:
      logging.error("%s: %s", name, error)
      text = json.dumps({"diverged": str(error)}) + "\n"
      if processes.first():
        (workdir / name / "diverged.json").write_text(text)
  return Turn.MADE


def _placed(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict | None:
  """The config with run:NAME made a folder; None while such a run goes on in another process.

  Raises:
    Diverged: such a run diverged.
  """
  text = config.to_json()
  names = set(_ANOTHER.findall(text))
  outcomes = processes.from_first(lambda: {name: outcome_of(workdir / name) for name in names})
  for name, outcome in outcomes.items():
    if outcome is None:
      return None
    if "diverged" in outcome:
      raise train.Diverged(f"{workdir / name}, which it starts from, diverged")
    text = text.replace(f'run:{name}"', f"{json.dumps(str(workdir / name))[1:]}")
  fields = json.loads(text)
  placed = config.copy_and_resolve_references()
  placed.update({name: fields[name] for name in ("init_from", "streams") if name in fields})
  return placed


@contextlib.contextmanager
def only_here(path: pathlib.Path) -> Iterator[bool]:
  """Whether this launch got the lock; it goes with the process, however that ends."""
  with path.open("w") as file:
    yield processes.from_first(lambda: _locked(file))


def _locked(file: IO[str]) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def summarise(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """label -> metric -> mean over the runs, its 95% t-interval, each run's value, the identity."""
  table: dict[str, Any] = {}
  for label, names, _ in config.rows:
    outcomes = [_phase_of(workdir, name) for name in names]
    attacks = config.get("attacks", ())
    for name, outcome in zip(names, outcomes, strict=True):
      if "after" in outcome:
        outcome["after"] |= audit.recovered(workdir, name, attacks, outcome["after"])
        outcome["after"] |= _seconds(workdir / name.partition("#")[0])
    finished = [outcome["after"] for outcome in outcomes if "after" in outcome]
    row: dict[str, Any] = {
      "steps": config.runs[names[0].partition("#")[0]].train.steps,
      "runs": len(finished),
      "diverged": [outcome["diverged"] for outcome in outcomes if "diverged" in outcome],
    }
    for metric in [m for m in next(iter(finished), ()) if all(m in other for other in finished)]:
      values = [float(outcome[metric]["value"]) for outcome in finished]
      finite = all(np.isfinite(values))
      row[metric] = {
        "value": float(np.mean(values)) if finite else str(np.mean(values)),
        "ci95": _interval(finished, metric, values) if finite else None,
        "runs": [v if np.isfinite(v) else str(v) for v in values],
        "identity": sorted({outcome[metric]["identity"] for outcome in finished}),
      }
    if verdicts.COLUMN in dict(config.columns) and (
      entry := verdicts.of_row(config, workdir, names)
    ):
      row[verdicts.COLUMN] = entry
    for column in filter(success.is_column, dict(config.columns)):
      if told := success.of_row(config, workdir, names, column):
        row[column] = told
    if attacks:
      row["curves"] = audit.mean_curves(workdir, names, attacks)
    table[label] = row
  if config.get("paired"):
    paired.add(table, config.paired)
  return table


def markdown(config: ConfigDict, results: Mapping[str, Any]) -> str:
  """The table: one row a label, `mean ± half-width`, and the published numbers beside it."""
  titles = [title for _, title in config.columns]
  head = ["", "steps", *titles, *(f"paper: {title}" for title in config.published)]
  lines = [_row(head), _row(["---"] * len(head))]
  for label, _, published in config.rows:
    row = results[label]
    cells = [_cell(row.get(metric)) for metric, _ in config.columns]
    if row["diverged"]:
      cells[0] += f" ({len(row['diverged'])} diverged)"
    lines.append(_row([label, str(row["steps"]), *cells, *published]))
  return "\n".join(lines) + "\n"


def outcome_of(run_dir: pathlib.Path) -> dict[str, Any] | None:
  """What a finished run left; None where it is not finished."""
  for name in ("results.json", "diverged.json"):
    if (run_dir / name).exists():
      return json.loads((run_dir / name).read_text())
  return None


def _seconds(run_dir: pathlib.Path) -> dict[str, Any]:
  """What all steps of a run took, where it has some."""
  seconds = timing.total(run_dir / "timing.jsonl")
  if seconds is None:
    return {}
  return {"seconds": {"value": seconds, "ci95": None, "identity": "steps without compilation"}}


def _interval(
  outcomes: Sequence[Mapping[str, Any]], metric: str, values: Sequence[float]
) -> Sequence[float] | None:
  """The 95% t-interval of the mean over runs; of a single run the interval of its own sample."""
  if len(outcomes) == 1:
    return outcomes[0][metric]["ci95"]
  return statistics.mean_interval(np.array(values))


def _phase_of(workdir: pathlib.Path, name: str) -> dict[str, Any]:
  """The outcome of run NAME; of NAME#PHASE with that phase as the one after it."""
  run_name, _, phase = name.partition("#")
  outcome = outcome_of(workdir / run_name) or {}
  return {"after": outcome[phase]} if phase in outcome else outcome


def _cell(entry: Mapping[str, Any] | None) -> str:
  if entry is None:
    return "-"
  if "words" in entry:
    return str(entry["words"])
  if entry["ci95"] is None:
    return _rounded(float(entry["value"]), 3)
  half = (entry["ci95"][1] - entry["ci95"][0]) / 2
  return f"{_rounded(float(entry['value']), 3)} ± {_rounded(half, 2)}"


def _rounded(value: float, digits: int) -> str:
  """So many digits, and large numbers written out: 3780, not 3.78e+03."""
  return f"{float(f'{value:.{digits}g}'):g}"


def _row(cells: Iterable[str]) -> str:
  return "| " + " | ".join(cells) + " |"
