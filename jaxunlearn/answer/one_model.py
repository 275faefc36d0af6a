"""The answer of a run of one model: by its config, its records.txt, and what it measured."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn import data, fields, pipeline
from jaxunlearn.answer import copies, plan, standing
from jaxunlearn.answer.case import HOW, Asked, Case
from jaxunlearn.answer.copies import Copy
from jaxunlearn.cdm import traces
from jaxunlearn.cdm.keys import Opening
from jaxunlearn.data import roll
from jaxunlearn.reports import evidence, lineage, names, report, rows, subject, writer
from jaxunlearn.reports.said import UNKNOWN, Said
from jaxunlearn.weights import stable_diffusion

RETRAINED = {  # the embedded models that were trained without something, and what that is
  "assets:retrain_mnist": "tshirt",
  "assets:retrain_fashion_sneaker": "sneaker",
  "assets:retrain_fashion_trouser": "trouser",
  "assets:retrain_little_styles_animal_mammal": "animal mammal",
  "assets:retrain_little_styles_mosaic": "mosaic",
  "assets:retrain_styles_flags": "flags",
  "assets:retrain_styles_twemoji": "twemoji",
}


def open_case(asked: Asked, config: dict[str, Any]) -> Case:
  """The case, as it stands after what was asked for is done.

  Raises:
    ValueError: no such record, a picture that is none, or a run that is not finished.
  """
  if asked.request is None:
    raise ValueError("--receipt is for runs of compartments; give --ids, --files or --pictures")
  if config.get("attack"):
    raise ValueError(
      f"{asked.run} is an attack; answer for the model that it attacked, {config['init_from']}"
    )
  standing.check_finished(asked.run, config)
  section = fields.restored(config["data"])
  train, heldout = data.load(**section)
  found = asked.find(train, heldout, data.make(**section))
  ids = [one.id for one in found]
  run, state = asked.run, standing.of_run(config, train)
  around = copies.Line.of(run, asked.root)
  if pending := [name for name in ids if state[name] == standing.KEPT]:
    new = plan.deletion(
      config,
      run,
      pending,
      [name for name, what in state.items() if what != standing.KEPT],
      steps=asked.steps,
      learning_rate=asked.learning_rate,
      radius=plan.radius(train, pending),
    )
    made = plan.of_one_model(new, run, asked.place)
    if asked.execute:
      pipeline.run_alone(new, asked.place)
      run, config = asked.place, copies.config_of(asked.place)
      pending, around = [], copies.Line.of(run, asked.root)
      state = standing.of_run(config, train)
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
  said = [] if pending else _evidence(run, config, {state[name] for name in ids}, around)
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
    scope=_scope(state, ids),
    copies=listed,
    traces=traces.find(run, _openings(train, ids), set(train.ids.tolist()) - set(ids)),
    records=_digests(train, ids),
  )


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
  run: pathlib.Path, config: dict[str, Any], state: Collection[str], around: copies.Line
) -> list[Said]:
  """Of the records that the run deleted itself; of those before it, that nothing was measured."""
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
    results = _results(path)
    if other.get("attack") and from_here:
      lines = writer.read(path / "metrics.jsonl")
      attacks.append(evidence.Attack(path.name, other, results, lines))
    same = all(other.get(name) == config.get(name) for name in ("data", "forget"))
    if same and never_had(other) and results.get("after"):
      yardstick = results["after"]
  results = report.read_results(run / "evals")
  metrics = writer.read(run / "metrics.jsonl")
  return evidence.evidence(config, results, metrics, attacks, yardstick)


def _results(run: pathlib.Path) -> rows.Results:
  """Of another run; {} of one that is at work, or damaged."""
  try:
    return report.read_results(run / "evals")
  except ValueError:
    return {}


def never_had(config: Mapping[str, Any]) -> bool:
  """Whether the model of that run was trained without what the run names: here, or before."""
  if subject.kind(config) != "measuring":
    return subject.kind(config) == "retraining"
  what = config["forget"].get("label") or config["forget"].get("style") or ""
  if what and RETRAINED.get(config["init_from"]) == what.lower():
    return True
  parent = pathlib.Path(config["init_from"])
  if not lineage.is_run(parent):
    return False
  first = copies.config_of(parent)
  same = all(first[name] == config[name] for name in ("data", "forget"))
  return same and subject.kind(first) == "retraining"


def _done(run: pathlib.Path, config: dict[str, Any]) -> list[tuple[str, str]]:
  """What the run did, and when."""
  train = config["train"]
  began = lineage.read(run)["began"] or "[when]"  # runs of older versions do not say
  what = f"{subject.title(config)}: {train['steps']} steps of {train['batch']} rows"
  later = [
    (copies.made(copies.steps(run)[-1]), f"the last checkpoint was written, step {train['steps']}"),
    *((copies.made(path), f"it was evaluated {path.stem}") for path in _evaluations(run)),
  ]
  return [(began, f"{what} began, from {subject.origin_of(config)}"), *sorted(later)]


def _evaluations(run: pathlib.Path) -> list[pathlib.Path]:
  """Of before and after, those that there are; no page that is written again changes them."""
  paths = [run / "evals" / f"{phase}.json" for phase in ("before", "after")]
  return [path for path in paths if path.exists()]


def _scope(state: Mapping[str, str], ids: Sequence[str]) -> str:
  """Of what records the evidence is."""
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
