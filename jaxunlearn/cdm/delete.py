"""Delete records, or a whole source, from a compartmentalised model, exactly, and prove it.

    jaxunlearn cdm delete --run=runs/cdm --ids=mnist/00012,fashion/00400 --plan
    jaxunlearn cdm delete --run=runs/cdm --file=requests.txt --prove
    jaxunlearn cdm delete --run=runs/cdm --source=uniform-3
    jaxunlearn cdm delete --run=runs/cdm --ids=mnist/00012 --receipt=receipts/17.json

A source is dropped with all that it trained. Of records, each shard that holds some goes back to
its last checkpoint that had not seen any, and is trained again from there; the others do not
change. `--prove` trains those shards once more from step 0, on records without the deleted ones,
and compares every bit. `--plan` says what would be done and at what cost, and stops.

The keys of the deleted records are destroyed (keys.py), so that nothing in the run names them; a
file that does all the same, like a config, is said. `--receipt` first writes them to a file outside
of the run, for who asked: a line a record, byte copies too.

What a deletion did, and the values of every metric before and after it, stand in
RUN/deletions/N.json. One that was stopped goes on with --resume. Exit codes as jaxunlearn.main, and
1 where a proof fails.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxunlearn import checkpoint, data, errors, fields
from jaxunlearn.cdm import receipts, sources, traces
from jaxunlearn.cdm import run as cdm_run
from jaxunlearn.cdm.keys import Opening
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.commands import guard
from jaxunlearn.mesh import processes
from jaxunlearn.reports import writer

NAMED = 3  # commitments that are printed


@dataclasses.dataclass(frozen=True)
class Item:
  """What a deletion means for one shard; steps are counted from 0."""

  source: str
  records: int  # to delete from it
  of: int  # records it has
  first_seen: int | None  # the first step that shows one of them
  restart: int  # the checkpoint it goes back to; 0: none
  steps: int  # of its training

  @property
  def cost(self) -> int:
    """Steps to train again."""
    return self.steps - self.restart

  def __str__(self) -> str:
    seen = "never seen" if self.first_seen is None else f"first seen in step {self.first_seen}"
    return (
      f"{self.source}: {self.records} of {self.of} records, {seen}; back to step {self.restart}, "
      f"{self.cost} of {self.steps} steps to train again"
    )


def plan(cdm: Cdm, ids: Sequence[str]) -> list[Item]:
  """What deleting those records takes, shard by shard.

  Raises:
    ValueError: an id that no source has, or all the records of one.
  """
  named = cdm.sources
  lost = [name for name in ids if name not in named]
  if lost:
    raise ValueError(
      f"{len(lost)} of {len(ids)} ids belong to no source, the first is {lost[0]!r}: it was "
      "deleted before, or is not in this run; to delete a record of the public backbone, retrain "
      "everything"
    )
  out = []
  for name, shard in cdm.shards().items():
    mine = [i for i in ids if named[i] == name]
    if len(mine) == len(shard.records):
      raise ValueError(f"those are all {len(mine)} records of source {name}; use --source={name}")
    if mine:
      first = shard.first_step(mine)
      known = cdm.training().recorded(name)
      safe = [step for step in known if first is None or step <= first]
      restart = max(safe, default=0)
      out.append(Item(name, len(mine), len(shard.records), first, restart, shard.steps))
  return out


def cost(items: Sequence[Item], cdm: Cdm) -> str:
  """The plan's last line."""
  again, whole = sum(item.cost for item in items), sum(s.steps for s in cdm.shards().values())
  return f"{again} of {whole} steps of the whole model to train again ({again / whole:.1%})"


def delete(cdm: Cdm, ids: Sequence[str]) -> dict[str, Any]:
  """Deletes the records and trains what had seen them again; returns deletions/N.json."""
  items = plan(cdm, ids)
  gone = set(ids)
  removed = [
    pathlib.Path("shards", item.source, "checkpoints", str(step))
    for item in items
    for step in sorted(cdm.training().recorded(item.source))
    if step > item.restart
  ]
  facts = {"plan": [told(item) for item in items], "cost": cost(items, cdm)}
  left = {name: source for name, source in cdm.sources.items() if name not in gone}
  names = [item.source for item in items]
  return _carry_out(cdm, left, names, removed, {"deleted_records": len(gone), **facts})


def told(item: Item) -> dict[str, Any]:
  """What is kept of a plan: the step that first shows a record follows from its id, and goes."""
  facts = dataclasses.asdict(item)
  del facts["first_seen"]
  return facts


def drop(cdm: Cdm, source: str) -> dict[str, Any]:
  """Deletes a source: its records, its shard and its part of the router."""
  named = cdm.sources
  errors.check_choice("source", source, sorted(set(named.values())))
  left = {name: other for name, other in named.items() if other != source}
  if not left:
    raise ValueError(f"{source} is the only source; delete the run's directory instead")
  removed = [pathlib.Path("shards", source)]
  facts = {
    "deleted_source": source,
    "deleted_records": len(named) - len(left),
    "cost": f"0 of {(len(set(left.values()))) * cdm.config.train.steps} steps to train again",
  }
  return _carry_out(cdm, left, [source], removed, facts)


def _carry_out(
  cdm: Cdm,
  left: dict[str, str],
  changed: Sequence[str],
  removed: Sequence[pathlib.Path],
  facts: dict[str, Any],
) -> dict[str, Any]:
  """Removes files, writes who has what now, says so in the ledger, and runs what is left to do."""
  results = cdm.workdir / "results.json"
  before = json.loads(results.read_text()) if results.exists() else {}
  folder = cdm.workdir / "deletions"
  folder.mkdir(exist_ok=True)
  path = folder / f"{len(list(folder.glob('*.json'))) + 1}.json"
  writer.replace(path, json.dumps({**facts, "before": before}, indent=2) + "\n")
  for gone in removed:
    shutil.rmtree(cdm.workdir / gone, ignore_errors=True)
  cdm.forget_latents(left)
  cdm.assign(left, "delete", removed=[*removed, *cdm.clear(changed)], **facts)
  cdm.settle()
  return json.loads(path.read_text())


def finish(cdm: Cdm) -> dict[str, Any]:
  """Trains and evaluates what the last deletion left to do; adds the values after it.

  Raises:
    ValueError: nothing was ever deleted from the run.
  """
  paths = sorted((cdm.workdir / "deletions").glob("*.json"), key=lambda p: int(p.stem))
  if not paths:
    raise ValueError(f"nothing was deleted from {cdm.workdir} yet; give --ids, --file or --source")
  after = cdm_run.run(cdm.config, cdm.workdir)

  def told_after() -> dict[str, Any]:
    record = {**json.loads(paths[-1].read_text()), "after": after}
    writer.replace(paths[-1], json.dumps(record, indent=2) + "\n")
    return record

  return processes.from_first(told_after)


def prove(cdm: Cdm, names: Sequence[str]) -> None:
  """Trains shards from step 0 without what was deleted; every bit has to be that of the run's.

  Raises:
    RuntimeError: a shard differs. The ledger has either outcome.
  """
  folder = cdm.workdir / "proof"
  processes.from_first(lambda: shutil.rmtree(folder, ignore_errors=True))
  processes.from_first(folder.mkdir)
  shards = cdm.shards()
  fresh = cdm.training(folder).run([shards[name] for name in names])
  kept = cdm.training().run([shards[name] for name in names])
  prints = {name: f"{checkpoint.fingerprint(kept[name].params):08x}" for name in names}
  equal = {n: same_bits(*processes.local((fresh[n], kept[n]))) for n in names}

  def told_outcome() -> None:
    shutil.rmtree(folder)
    for name in names:
      cdm.ledger.append("proof", source=name, equal=equal[name], fingerprint=prints[name])

  processes.from_first(told_outcome)
  if differ := [name for name in names if not equal[name]]:
    raise RuntimeError(
      f"{', '.join(differ)} differ from shards trained without the deleted records; use the "
      "machine and its devices, the versions, and the config.mesh and sources.lanes of the first "
      "training"
    )


def same_bits(one: Any, other: Any) -> bool:
  """Whether all leaves of two trees are equal, bit by bit."""
  bits = lambda leaf: np.asarray(leaf).tobytes()
  return all(jax.tree.leaves(jax.tree.map(lambda a, b: bits(a) == bits(b), one, other)))


def markdown(record: dict[str, Any], metric: str = "feature_fid") -> str:
  """What a deletion cost, and a metric before and after it, one row a mode."""
  lines = [f"{record['deleted_records']:,} records deleted; {record['cost']}.", ""]
  lines += [f"| | {metric} before | after | change |", "| --- | --- | --- | --- |"]
  for phase, values in record["after"].items():
    old, new = (side.get(metric) for side in (record["before"].get(phase, {}), values))
    if old and new:
      change = new["value"] / old["value"] - 1
      lines.append(f"| {phase} | {old['value']:.3g} | {new['value']:.3g} | {change:+.1%} |")
  return "\n".join(lines) + "\n"


def open_run(folder: pathlib.Path, stopped: Any = lambda: False) -> Cdm:
  """The run in that directory; raises ValueError where there is none."""
  path = folder / "config.json"
  if not path.is_file() or not (folder / sources.FILE).is_file():
    raise ValueError(f"{folder} holds no compartmentalised run; give its working directory")
  config = fields.restored(json.loads(path.read_text()))
  config["compose"].setdefault("rows", 0)  # of a run from before that field
  return Cdm(ConfigDict(config), folder, stopped)


def command(args: argparse.Namespace) -> None:
  with processes.stop_signal() as stopped:
    cdm = open_run(args.run, stopped)
    _ = cdm.backbone  # that of all processes, before the first goes on by itself
    gone: list[Opening] = []
    if not processes.from_first(lambda: carry_out(cdm, args, gone)):
      return
    record = finish(cdm)
    names = [item["source"] for item in record.get("plan", ())]
    if args.prove and names:
      prove(cdm, names)
  if not processes.first():
    return
  if args.prove and names:
    print(f"proven: {', '.join(names)} equal, bit for bit, shards that never had the records")
  for path in traces.find(args.run, gone, cdm.sources):
    print(f"{path} still names a deleted record and is not rewritten; edit or remove it by hand")
  print(markdown(record))
  if args.out:
    writer.replace(args.out, markdown(record))


def carry_out(cdm: Cdm, args: argparse.Namespace, gone: list[Opening]) -> bool:
  """Plans, and unless that is all, deletes; adds the keys of what is deleted to `gone`.

  Returns whether there is something to finish. One process does it.
  """
  if args.resume and args.receipt:
    raise ValueError("--receipt takes keys that the deletion has destroyed; leave it out")
  ids = [] if args.resume else chosen(cdm, args)
  if ids and not args.source:
    items = plan(cdm, ids)
    print("\n".join([*map(str, items), cost(items, cdm)]))
  if args.plan:
    return False
  gone += cdm.keys.of_ids(ids).values()
  if args.receipt:
    receipts.write(args.receipt, args.run, gone)
  if args.source:
    drop(cdm, args.source)
  elif ids:
    delete(cdm, ids)
  print("".join(f"deleted {opening.commitment}\n" for opening in gone[:NAMED]), end="")
  if len(gone) > NAMED:
    print(f"and {len(gone) - NAMED} more, each in a line `deleted` of the ledger")
  return True


def chosen(cdm: Cdm, args: argparse.Namespace) -> list[str]:
  """The ids of what is to be deleted; raises ValueError where it is not there."""
  if args.source:
    errors.check_choice("source", args.source, sorted(set(cdm.sources.values())))
    return sources.members(cdm.sources)[args.source]
  request = data.Forget(ids=tuple(filter(None, args.ids.split(","))), file=args.file)
  return cdm.setup.train.ids[request.mask(cdm.setup.train)].tolist()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="jaxunlearn cdm delete", description=__doc__.split("\n")[0])
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--ids", default="", help="record ids, or sha256:HEX, between commas")
  what.add_argument("--file", default="", help="a file with one of them a line")
  what.add_argument("--source", default="", help="a whole source")
  what.add_argument("--resume", action="store_true", help="finish a deletion that was stopped")
  parser.add_argument("--plan", action="store_true", help="only say what would be done")
  parser.add_argument("--prove", action="store_true", help="train again from step 0 and compare")
  parser.add_argument("--receipt", type=pathlib.Path, help="a file for the keys, not in the run")
  parser.add_argument("--out", type=pathlib.Path, help="a Markdown file for the table it prints")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: command(args), args.run, together=True)


if __name__ == "__main__":
  sys.exit(start())
