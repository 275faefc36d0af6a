"""A request and its answer: what is asked for, and all that the folder says.

one_model.py and compartments.py make the answer of a run. By default it uses what the run did
already; records that the run still has are deleted with `execute` alone, and until then the answer
is a plan.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jaxunlearn
from jaxunlearn import data
from jaxunlearn.answer import find, plan
from jaxunlearn.answer.copies import Copy
from jaxunlearn.answer.find import Found, Request
from jaxunlearn.inputs import ranges
from jaxunlearn.reports import evidence, lineage
from jaxunlearn.reports.said import Said

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

  def find(self, train: data.Records, heldout: data.Records, source: Any) -> list[Found]:
    """The records; those that a picture may be are listed in the folder.

    Raises:
      ValueError: as find.find.
    """
    assert self.request is not None
    try:
      return find.find(self.request, train, heldout, source)
    except find.Unclear as error:
      self.out.mkdir(parents=True, exist_ok=True)
      find.write_candidates(self.out, error.candidates, train, source)
      raise ValueError(f"{error}; {self.out / find.GRID} shows them") from error

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
