"""What a run's numbers do not show: from its config and from the numbers themselves."""

from collections.abc import Iterator

from jaxunlearn import streams
from jaxunlearn.reports import names, rows, subject
from jaxunlearn.reports.rows import Results
from jaxunlearn.reports.subject import Config


def limits(config: Config, results: Results) -> list[str]:
  """One sentence or more for each; in the order of weight."""
  return [
    *_evaluations(config, results),
    *_of_kind(config, results),
    *_spread(config, results),
    *_zeros(results),
    *_elsewhere(config, results),
    *_judges(results),
  ]


def _evaluations(config: Config, results: Results) -> Iterator[str]:
  """Phases that are not there."""
  kind = subject.kind(config)
  if kind == "compartments":
    return
  if "before" not in results and kind in (*subject.DELETING, "attack") and config.get("init_from"):
    yield "There is no evaluation before: nothing here says what the run changed."
  if "after" not in results:
    yield "There is no evaluation after: nothing here says what the run came to."
  elif not results["after"]:
    yield "The config asks for no metric after: others have to judge the samples."


def _of_kind(config: Config, results: Results) -> Iterator[str]:
  """What the run did, and what it therefore does not show."""
  kind, what = subject.kind(config), subject.in_sentence(config)
  if kind == "attack":
    yield from _attack(config)
  elif kind == "compartments" and config["sources"].get("n") == 1:
    yield "One network has seen all of the data: nothing can be deleted from it exactly."
  elif kind == "compartments":
    yield (
      "A source that is deleted goes exactly: its network, and its part of a router that each has "
      "to itself. What the sources have in common stays: pictures that are in two of them, and "
      "the backbone, which learnt from the public set. The average of sources (naive) has the form "
      "that copy protection takes; an ordinary sampler of it certifies no bound."
    )
  elif kind == "training" and what and _has_all(config):
    yield f"Nothing was deleted: {what} is in the training data, and the metrics look for it."
  elif kind == "retraining":
    yield (
      "The model never saw the records that were left out. Near copies of them in the rest would "
      "still teach it what they show."
    )
  elif kind in subject.DELETING:
    yield from _not_attacked(results)
    if config.get("train", {}).get("steps"):
      yield (
        "The weights were fine-tuned, not retrained without the data. What they still hold of it "
        "in a form that no metric here reads is not known."
      )
  if earlier := len(config.get("forget", {}).get("earlier") or ()):
    records = "1 record" if earlier == 1 else f"{earlier} records"
    yield (
      f"Earlier runs deleted {records}, which no stream of this run has. Whether this run brought "
      "any of them back was not measured."
    )
  if later := len(config.get("forget", {}).get("later") or ()):
    records = "1 record" if later == 1 else f"{later} records"
    yield (
      f"Later runs delete {records} more, which no stream of this run has. What the model still "
      "holds of them was not measured."
    )
  if config.get("method", {}).get("name") == "embedding_copy":
    yield (
      "This method is a control: it overwrites the vector that names what is to be unlearned, and "
      "changes nothing else. A metric that it passes proves little."
    )


def _has_all(config: Config) -> bool:
  """Whether the training data has what the metrics look for."""
  return any(take.take in ("all", "forget") for take in subject.takes(config).values())


def _not_attacked(results: Results) -> Iterator[str]:
  others = [names.phase(phase) for phase in results if phase not in ("before", "after")]
  if others:
    yield f"The only attacks or later phases evaluated are: {', '.join(others)}. No others were."
  else:
    yield (
      "A relearning attack was not run: a few steps of training on the deleted or on similar "
      "images may bring them back."
    )


def _attack(config: Config) -> Iterator[str]:
  train, wanted = config.get("train", {}), subject.in_sentence(config)
  rate = config.get("optimizer", {}).get("learning_rate")
  at = "" if rate is None else f" at a learning rate of {rate:g}"
  if config["attack"] in streams.STILL:
    yield "One attack was made, and it trained nothing. Others may bring back more."
    return
  yield (
    f"One attack was run: {train.get('steps', 'some')} steps{at}, learning from "
    f"{subject.learnt_from(config)}. More steps, other rates or other data may bring back more."
  )
  if config["attack"] in ("dimra", "unrelated"):
    yield (
      f"The attack was shown no image of {wanted}. That it comes back shows that the weights held "
      "it, only as far as the same attack does not teach it to a model that never saw it."
    )
  else:
    yield (
      f"The attack was shown images of {wanted}: what comes back may be learnt from them anew. The "
      "same attack on a model that never saw it tells how much."
    )
  if config["attack"] == "inversion":
    yield "It trained one vector, the embedding of the condition; all other weights stayed."
  if every := config.get("eval", {}).get("every"):
    count = config["eval"].get("probe_samples", "few")
    yield (
      f"The probes on the way are every {every} steps, on {count} samples each: the step of first "
      "recovery is no finer than that, and a share of few samples is rough."
    )


def _spread(config: Config, results: Results) -> Iterator[str]:
  if any(e["ci95"] for phase in results.values() for e in phase.values()):
    yield (
      "The intervals are sampling error alone: how far a value may be off because this one model "
      f"(training seed {config.get('seed', 'not recorded')}) was measured on finitely many samples "
      "or probes. Another seed gives another model, and that spread is not in them."
    )


def _zeros(results: Results) -> Iterator[str]:
  for phase, name, entry in _entries(results):
    if name.endswith("_rate") and entry["value"] == 0 and entry["ci95"]:
      n = rows.pairs_of(entry["identity"]).get("n")
      yield (
        f"The {names.metric(name)} {phase} is 0{f' of {n} samples' if n else ''}. That bounds the "
        f"rate by {float(entry['ci95'][1]):.2%}, the upper end of its Wilson interval, not by 0."
      )


def _elsewhere(config: Config, results: Results) -> Iterator[str]:
  pairs = [rows.pairs_of(entry["identity"]) for _, _, entry in _entries(results)]
  if not pairs:
    return
  collect = lambda key: ", ".join(sorted({p[key] for p in pairs if key in p}))
  words = {"n": "samples", "sampler": "sampler", "steps": "sampling steps"}
  how = "; ".join(f"{word} {collect(key)}" for key, word in words.items() if collect(key))
  yield (
    "Behaviour elsewhere may have changed: other samplers, more samples, and everything that no "
    f"row of the table looks at{f' (measured with {how})' if how else ''}."
  )
  if config.get("ema"):
    yield (
      "Samples and metrics are of the averaged parameters (EMA); the raw ones were not measured."
    )


def _judges(results: Results) -> Iterator[str]:
  """Who judged, and what cannot be compared."""
  table = [rows.row(name, results) for name in rows.metric_names(results)]
  seen_by: dict[str, list[str]] = {}
  for r in table:
    for identity in r.identities:
      seen_by.setdefault(rows.pairs_of(identity).get("extractor", ""), []).append(r.title)
  for extractor, titles in seen_by.items():
    listed = ", ".join(dict.fromkeys(titles))
    if extractor == "pixels":
      yield f"By pixels: {listed}. A shifted or restyled copy of the target may pass."
    elif extractor:
      yield (
        f"By a small classifier of this project ({extractor}), whose errors are in the values: "
        f"{listed}. They do not compare with published values, which were made with another."
      )
  apart = [f"{r.title} ({r.differs})" for r in table if r.differs]
  if apart:
    yield f"Measured differently between phases, so not comparable: {', '.join(apart)}."


def _entries(results: Results) -> Iterator[tuple[str, str, dict]]:
  for phase, values in results.items():
    for name, entry in values.items():
      yield phase, name, entry
