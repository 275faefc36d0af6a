"""The answer of a run of compartments: an exact deletion, by the ledger (cdm/delete.py)."""

import json
import pathlib

from jaxunlearn import data
from jaxunlearn.answer import copies, exact, find, plan, standing
from jaxunlearn.answer.case import HOW, RECEIPT, Asked, Case
from jaxunlearn.answer.find import Found
from jaxunlearn.cdm import delete, ledger, receipts, traces
from jaxunlearn.cdm.log import Log
from jaxunlearn.reports import names, subject


def open_case(asked: Asked) -> Case:
  """The case, as it stands after what was asked for is done.

  Raises:
    ValueError: no such record, a picture that is none, or a ledger that does not hold.
  """
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
    found = asked.find(train, cdm.setup.heldout, data.make(**cdm.config.data))
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
    method="exact deletion",
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
