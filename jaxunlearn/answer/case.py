"""One request from its names to its answer: found, planned, done where that is asked for, listed.

By default a case uses what the run did already. Records that the run still has are deleted with
`execute` alone; until then the answer is a plan.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxunlearn
from jaxunlearn import data, fields, pipeline
from jaxunlearn.answer import copies, exact, find, plan, standing
from jaxunlearn.answer.copies import Copy
from jaxunlearn.answer.find import Found, Request
from jaxunlearn.cdm import delete, ledger, receipts, traces
from jaxunlearn.cdm.keys import Opening
from jaxunlearn.cdm.log import Log
from jaxunlearn.data import roll
from jaxunlearn.inputs import ranges
from jaxunlearn.reports import evidence, lineage, names, report, subject, writer
from jaxunlearn.reports.said import UNKNOWN, Said
from jaxunlearn.weights import stable_diffusion

RECEIPT = "receipt.json"
FURTHER = (
  "The model was trained further so that it forgets the records. It was not trained again from the "
  "start. So we tell you what we measured, and what we cannot say."
)
HOW = {
  "": "",
  "retraining": "The model was trained from the start without the records.",
  "naive": FURTHER,
  "unlearning": FURTHER,
  "compartments": "What had seen the records was removed, and trained again without them.",
}


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is to be answered, and how far: see the flags of __main__.py."""

  run: pathlib.Path
  out: pathlib.Path
  request: Request | None  # None: a receipt names the record
  runs: pathlib.Path | None = None  # where other runs are looked for; None: beside the run
  execute: bool = False
  purge: bool = False
  prove: bool = False
  workdir: pathlib.Path | None = None  # of a new run; None: beside the run
  steps: ranges.Count = plan.STEPS
  learning_rate: ranges.Above0 = plan.LEARNING_RATE
  receipt: pathlib.Path | None = None
  head: str = ""

  def __post_init__(self) -> None:
    ranges.check(self)
    if self.prove and not self.execute:
      raise ValueError("--prove compares what was trained again; give it with --execute")
    if self.out.resolve().is_relative_to(self.run.resolve()):
      raise ValueError(f"--out {self.out} is inside the run; use a folder outside of it")

  @property
  def root(self) -> pathlib.Path:
    return self.runs or self.run.resolve().parent

  @property
  def place(self) -> pathlib.Path:
    """Of a new run."""
    return self.workdir or self.run.with_name(f"{self.run.name}_answer")


@dataclasses.dataclass(frozen=True)
class Case:
  """All that the folder says."""

  run: pathlib.Path
  title: str
  method: str
  found: Sequence[Found]
  deleted: bool  # from the model, all of them
  how: str  # they were deleted, in a sentence for the person
  plan: plan.Plan
  done: Sequence[tuple[str, str]]  # UTC, what
  evidence: Sequence[Said]
  scope: str  # of what records the evidence is
  copies: Sequence[Copy]
  traces: Sequence[str]  # files of the run that name a record
  records: Sequence[dict[str, str]]  # id, sha256
  started: str = dataclasses.field(default_factory=lineage.now)

  def as_data(self) -> dict[str, Any]:
    """The technical annex."""
    return {
      "time": self.started,
      "version": jaxunlearn.__version__,
      "run": {
        "path": str(self.run),
        "title": self.title,
        "method": self.method,
        "config_sha256": lineage.digest(self.run),
        "lineage": lineage.read(self.run),
        "ancestors": lineage.ancestors(self.run),
      },
      "request": [one._asdict() for one in self.found],
      "records": list(self.records),
      "deleted_from_the_model": self.deleted,
      "how": self.how,
      "plan": self.plan.as_data(),
      "done": [{"time": time, "what": what} for time, what in self.done],
      "evidence": evidence.as_data(self.evidence),
      "evidence_is_of": self.scope,
      "copies": [dataclasses.asdict(one) for one in self.copies],
      "traces": list(self.traces),
    }


def open_case(asked: Asked) -> Case:
  """The case, as it stands after what was asked for is done.

  Raises:
    ValueError: no such run or record, a run that is not finished, a ledger that does not hold.
    Unclear: a picture is like records and is none; candidates.csv and .png are in the folder.
  """
  config = copies.config_of(asked.run)
  if "autoencoder" in config:
    raise ValueError(f"{asked.run} is an autoencoder; give a run of a diffusion model made with it")
  return _of_sources(asked) if "sources" in config else _of_model(asked, config)


def _find(asked: Asked, train: data.Records, heldout: data.Records, source: Any) -> list[Found]:
  """The records; those that a picture may be are listed in the folder."""
  assert asked.request is not None
  try:
    return find.find(asked.request, train, heldout, source)
  except find.Unclear as error:
    asked.out.mkdir(parents=True, exist_ok=True)
    find.write_candidates(asked.out, error.candidates, train, source)
    raise ValueError(f"{error}; {asked.out / find.GRID} shows them") from error


# A run of one model.


def _of_model(asked: Asked, config: dict[str, Any]) -> Case:
  if asked.request is None:
    raise ValueError("--receipt is for runs of compartments; give --ids, --files or --pictures")
  if config.get("attack"):
    raise ValueError(
      f"{asked.run} is an attack; answer for the model that it attacked, {config['init_from']}"
    )
  standing.check_finished(asked.run, config)
  section = fields.restored(config["data"])
  train, heldout = data.load(**section)
  found = _find(asked, train, heldout, data.make(**section))
  ids = [one.id for one in found]
  run, state = asked.run, standing.of_run(config, train, ids)
  around = copies.Line.of(run, asked.root)
  if pending := [name for name in ids if state[name] == standing.KEPT]:
    new = plan.deletion(
      config,
      run,
      pending,
      _gone(config, train),
      steps=asked.steps,
      learning_rate=asked.learning_rate,
      radius=plan.radius(train, pending),
    )
    made = plan.of_one_model(new, run, asked.place)
    if asked.execute:
      pipeline.run_single(new, asked.place)
      run, config = asked.place, copies.config_of(asked.place)
      pending, around = [], copies.Line.of(run, asked.root)
  else:
    made = plan.done_already(config, run)
  origins = {one["origin"] for one in around.ancestors} if not pending else set()
  runs = standing.Runs(standing.wanted(train, ids), origins)
  if pending and (other := _elsewhere(around, runs)):
    line = f"{other} deleted them already; answer with --run={other}."
    made = dataclasses.replace(made, lines=(*made.lines, line))
  listed = [*_copies(run, config, train, ids, pending), *copies.of_models(around, runs)]
  if asked.purge and not pending:
    listed = copies.purge(listed, run)
  said = [] if pending else _evidence(run, config, train, ids, around)
  return Case(
    run=run,
    title=subject.title(config),
    method=names.method(config["method"]["name"]),
    found=found,
    deleted=not pending,
    how=HOW[subject.kind(config) if not pending else ""],
    plan=made,
    done=_done(run, config) if not pending else [],
    evidence=said,
    scope=_scope(config, train, ids),
    copies=listed,
    traces=traces.find(run, _openings(train, ids), set(train.ids.tolist()) - set(ids)),
    records=_digests(train, ids),
  )


def _gone(config: dict[str, Any], train: data.Records) -> list[str]:
  """What the run, and runs before it, deleted or left out."""
  state = standing.of_run(config, train, train.ids.tolist())
  return [name for name, what in state.items() if what != standing.KEPT]


def _elsewhere(around: copies.Line, runs: standing.Runs) -> pathlib.Path | None:
  """A run made from this one that deleted the records."""
  made = lineage.descendants(around.run, around.others)
  return next((path for path in made if runs.holds(path) == standing.DELETED), None)


def _copies(
  run: pathlib.Path,
  config: dict[str, Any],
  train: data.Records,
  ids: Sequence[str],
  pending: Sequence[str],
) -> list[Copy]:
  """Of the data, of caches and of the run itself."""
  out = list(copies.of_pictures(train, ids, names.source(config["data"]["source"])))
  if codec := config.get("codec"):
    read = stable_diffusion.read_codec(codec["path"], codec["batch"])
    out += copies.of_latents(read, train, ids)
  own = list(copies.of_run(run))
  if pending:  # the model has them, and all that is there is still in use
    note = "the records are not deleted from it yet"
    own = [dataclasses.replace(one, how=copies.BY_HAND, note=note) for one in own]
  return out + own


def _evidence(
  run: pathlib.Path,
  config: dict[str, Any],
  train: data.Records,
  ids: Sequence[str],
  around: copies.Line,
) -> list[Said]:
  """Of the records that the run deleted itself; of those before it, that nothing was measured."""
  state = set(standing.of_run(config, train, ids).values())
  out = _measured(run, config, around) if standing.DELETED in state else []
  if standing.EARLIER in state:
    text = (
      "Runs before this one deleted some of the records. What this run holds of those was not "
      "measured; answer for the run that deleted them, too."
    )
    out.append(Said(UNKNOWN, text, "earlier"))
  return out


def _measured(run: pathlib.Path, config: dict[str, Any], around: copies.Line) -> list[Said]:
  """With the attacks on the run, and a model without the records, that are under the root."""
  attacks, yardstick = [], None
  mine = {str(run.resolve())}
  for path in around.others:
    other = copies.config_of(path)
    from_here = {one["path"] for one in lineage.read(path)["from"]} & mine
    results = report.read_results(path / "evals")
    if other.get("attack") and from_here:
      lines = writer.read(path / "metrics.jsonl")
      attacks.append(evidence.Attack(path.name, other, results, lines))
    same = all(other.get(name) == config.get(name) for name in ("data", "forget"))
    if same and subject.kind(other) == "retraining" and results.get("after"):
      yardstick = results["after"]
  results = report.read_results(run / "evals")
  metrics = writer.read(run / "metrics.jsonl")
  return evidence.evidence(config, results, metrics, attacks, yardstick)


def _done(run: pathlib.Path, config: dict[str, Any]) -> list[tuple[str, str]]:
  """What the run did, and when."""
  train = config["train"]
  began = lineage.read(run)["began"] or "[when]"  # runs of older versions do not say
  what = f"{subject.title(config)}: {train['steps']} steps of {train['batch']} rows"
  return [
    (began, f"{what} began, from {subject.origin_of(config)}"),
    (copies.made(copies.steps(run)[-1]), f"the last checkpoint was written, step {train['steps']}"),
    (copies.made(run / "results.json"), "the results were written"),
  ]


def _scope(config: dict[str, Any], train: data.Records, ids: Sequence[str]) -> str:
  state = standing.of_run(config, train, train.ids.tolist())
  count = sum(what == standing.DELETED for what in state.values())
  mine = sum(state[name] == standing.DELETED for name in ids)
  if count == mine:
    return f"all that the run deleted: {count} record{'s' * (count != 1)}"
  return f"all {count} records that the run deleted together, {mine} of them of this request"


def _openings(train: data.Records, ids: Sequence[str]) -> list[Opening]:
  """The records, to be looked for in files."""
  mine = train.take(np.flatnonzero(np.isin(train.ids, list(ids))))
  rows = zip(mine.sha256().tolist(), roll.marks(mine), mine.ids.tolist(), strict=True)
  return [Opening("", *row) for row in rows]


def _digests(train: data.Records, ids: Sequence[str]) -> list[dict[str, str]]:
  return [{"id": one.id, "sha256": one.sha256} for one in _openings(train, ids)]


# A run of compartments.


def _of_sources(asked: Asked) -> Case:
  ledger.verify(asked.run, asked.head)
  cdm = delete.open_run(asked.run)
  train = cdm.setup.train
  if asked.request is None:
    assert asked.receipt is not None
    opening = receipts.read(asked.receipt)
    _check_settled(asked.run)
    gone, found = [opening], [Found(opening.id, "receipt", str(asked.receipt))]
    items, left = [], []
  else:
    found = _find(asked, train, cdm.setup.heldout, data.make(**cdm.config.data))
    named = cdm.sources
    left = [one.id for one in found if one.by != find.BY_COPY or one.id in named]
    standing.check_sources(asked.run, named, left)
    items, gone = delete.plan(cdm, left), list(cdm.keys.of_ids(left).values())
  lines = tuple(map(str, items))
  cost = sum(item.cost for item in items)
  anew = delete.cost(items, cdm) if items else "Nothing is to be trained: it was deleted."
  if left and asked.execute:
    asked.out.mkdir(mode=0o700, parents=True, exist_ok=True)
    receipts.write(asked.out / RECEIPT, asked.run, gone)
    delete.delete(cdm, left)
    delete.finish(cdm)
    if asked.prove:
      delete.prove(cdm, [item.source for item in items])
    left = []
  log = Log(asked.run)
  at = [] if left else [log.deletion(opening.commitment) for opening in gone]
  ids = [one.id for one in found]
  around = copies.Line.of(asked.run, asked.root)
  runs = standing.Runs([standing.Wanted(one.id, one.mark) for one in gone])
  listed = [*copies.of_models(around, runs)]
  if known := sorted(set(ids) & set(train.ids.tolist())):
    source = names.source(cdm.config.data["source"])
    listed = [*copies.of_pictures(train, known, source), *listed]
  return Case(
    run=asked.run,
    title=subject.title(cdm.config.to_dict()),
    method="training again without the records",
    found=found,
    deleted=not left,
    how=HOW["compartments"],
    plan=plan.Plan(lines, cost, cost * cdm.config.train.batch * 3, anew),
    done=exact.done(log, at),
    evidence=exact.sentences(log, at, cdm.config.init_from) if at else [],
    scope="the records of this request, by the lines of the ledger",
    copies=listed,
    traces=traces.find(asked.run, gone, cdm.sources),
    records=[{"id": one.id, "sha256": one.sha256} for one in gone],
  )


def _check_settled(run: pathlib.Path) -> None:
  """Raises ValueError where a deletion was stopped."""
  paths = sorted((run / "deletions").glob("*.json"), key=lambda path: int(path.stem))
  if paths and "after" not in json.loads(paths[-1].read_text()):
    raise ValueError(
      f"a deletion from {run} was stopped; finish it with `jaxunlearn cdm delete --run={run} "
      "--resume`, then answer"
    )
