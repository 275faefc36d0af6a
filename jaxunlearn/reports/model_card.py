"""The model card of exported weights (README.md): all of it from the run, nothing added.

What was deleted is told by record id, by SHA-256 or only counted. The digest is the default: who
holds a file can check that it is among the deleted ones, and nobody learns a name. Files that
anyone has can be found by their digests too; count tells least. Data fields that are words (paths,
ids) stay out, and with count so do the hashes of the target in the metrics' identities.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from jaxunlearn import data, errors
from jaxunlearn.reports import limits as limits_of
from jaxunlearn.reports import report, rows, subject, verdict, writer
from jaxunlearn.weights import diffusers_config, stable_diffusion

DELETED = ("ids", "sha256", "count")
FIELDS = (  # of a run's config that a card is made from
  *("model", "process", "method", "streams", "data", "forget", "optimizer", "train"),
  *("ema", "seed", "init_from"),
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclasses.dataclass(frozen=True)
class Options:
  """What the run does not know, or its owner decides."""

  license: str = "unknown"  # a licence id of the Hub; unknown is one
  deleted: str = "sha256"  # how to tell what was deleted: one of DELETED
  base: str = ""  # what the run started from; else its init_from

  def __post_init__(self) -> None:
    errors.check_choice("way to tell what was deleted", self.deleted, DELETED)
    if not _LICENCE.fullmatch(self.license):
      raise ValueError(f"license {self.license!r} is no licence id; give one like apache-2.0")


@dataclasses.dataclass(frozen=True)
class Deleted:
  """Some records: how many, and a line for each name; none where they are only counted."""

  count: int
  lines: tuple[str, ...]


def render(run: pathlib.Path, config: Mapping[str, Any], item: str, step: int, o: Options) -> str:
  """The card of the parameters `item` (ema, params) of the run at that step, Markdown under YAML.

  Raises:
    ValueError: the run's data is not there to look the deleted records up.
  """
  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(report.TEMPLATES),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  cell = lambda text: code(text).replace("|", "\\|")
  env.filters |= {"yaml": json.dumps, "code": code, "cell": cell, "plain": plain}
  results = _results(run, hide_target=o.deleted == "count")
  table = [rows.row(name, results) for name in rows.metric_names(results)]
  now, earlier = deleted(config, o.deleted) if subject.deletes(config) else (Deleted(0, ()),) * 2
  origin, base = config["init_from"], subject.base_of(config)
  hub_id = o.base or (
    base.removeprefix("hub:").partition("@")[0] if base.startswith("hub:") else ""
  )
  labelled = bool(config["model"].get("num_class_embeds"))
  ours = config["model"].get("classes") and not labelled
  kind = "Class-conditional UNet" if ours else diffusers_config.UNET
  kind = {
    "uvit": diffusers_config.UVIT,
    "text_to_image": stable_diffusion.PIPELINE_CLASS,
  }.get(config["model"]["name"], kind)
  return env.get_template("model_card.md.j2").render(
    license=o.license,
    base_model=hub_id if _HUB_ID.fullmatch(hub_id) else "",
    run=run.resolve().name,
    method=config["method"]["name"],
    deleted="deleted" if origin else "left out",  # of a fresh model nothing is deleted
    facts=facts(config, item, step, o.base or subject.origins(config)),
    now=now,
    earlier=earlier,
    how=o.deleted,
    attack=config.get("attack", ""),
    wanted=subject.target(config),
    shown=subject.learnt_from(config) if config.get("attack") else "",
    verdict=verdict.verdict(config, results, writer.read(run / "metrics.jsonl")).line,
    phases=list(results),
    rows=table,
    identities=rows.identities(table),
    kind=kind,
    foreign=kind not in (diffusers_config.UNET, stable_diffusion.PIPELINE_CLASS),
    text=kind == stable_diffusion.PIPELINE_CLASS,
    token=config.get("prompts", {}).get("token", ""),
    labelled=labelled,
    patch=config["model"].get("patch_size", 1),
    limits=limits(config, results, item, now.count + earlier.count),
  )


def facts(config: Mapping[str, Any], item: str, step: int, origin: str) -> dict[str, str]:
  """How the weights were made, by heading."""
  train, optimizer = config["train"], config["optimizer"]
  source = {k: v for k, v in config["data"].items() if isinstance(v, int | float)}
  method = {k: v for k, v in config["method"].items() if k != "name"}
  averaged = f"averaged (EMA, largest decay {config['ema']})"
  return {
    "Started from": origin,
    **({"Trained": told} if (told := subject.trained(config)) else {}),
    "Method": f"{config['method']['name']} ({_listed(method)})",
    "Streams": _listed(_streams(config)),
    "Data": f"{config['data']['source']} ({_listed(source)})",
    "Steps": f"{step} of {train['steps']}",
    "Batch": f"{train['batch']}{_parts(train['micro_batches'])}",
    "Optimizer": f"AdamW ({_listed(optimizer)})",
    "Process": _listed({k: v for k, v in config["process"].items() if v != []}),
    "Parameters": averaged if item == "ema" else "raw",
    "Seed": str(config["seed"]),
  }


def _parts(count: int) -> str:
  return f" in {count} micro-batches" if count > 1 else ""


def deleted(config: Mapping[str, Any], how: str) -> tuple[Deleted, Deleted]:
  """What the run deleted, and what runs before it had."""
  records, _ = data.load(**_tuples(config["data"]))
  request = data.Forget(**_tuples(config["forget"]))
  left = request.remaining(records)
  now = left.take(np.flatnonzero(request.mask(left)))
  before = dataclasses.replace(request, later=()).remaining(records)
  earlier = records.take(np.flatnonzero(~np.isin(records.ids, before.ids)))
  return _told(now, how), _told(earlier, how)


def limits(
  config: Mapping[str, Any], results: rows.Results, item: str, count: int
) -> Sequence[str]:
  """What the numbers do not show."""
  out = limits_of.limits(config, results)
  if count:
    out.append("A rate of 0 is no proof of forgetting: it is 0 among the samples that were drawn.")
  if results and config["ema"] and item != "ema":
    out.append("The evaluations are of the averaged parameters; these are the raw ones.")
  return list(map(plain, out))


def plain(text: str) -> str:
  """Text of one line without HTML, code, links and pictures, whatever it holds."""
  return re.sub(r"[\\`\[]", r"\\\g<0>", " ".join(text.split())).replace("<", "&lt;")


def code(text: Any) -> str:
  """A Markdown code span of one line, whatever the text holds."""
  text = " ".join(str(text).split())
  fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
  return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _streams(config: Mapping[str, Any]) -> dict[str, str]:
  """What the method reads, by stream."""
  part = lambda take: f" ({take.first} of them)" if take.first else ""
  return {name: f"{take.take}{part(take)}" for name, take in subject.takes(config).items()}


def _results(run: pathlib.Path, hide_target: bool) -> rows.Results:
  results = report.read_results(run / "evals")
  if hide_target:
    for entry in (entry for phase in results.values() for entry in phase.values()):
      entry["identity"] = re.sub(r"\btarget=\S+", "target=withheld", entry["identity"])
  return results


def _told(records: data.Records, how: str) -> Deleted:
  names = {"ids": lambda: records.ids.tolist(), "sha256": lambda: records.sha256().tolist()}
  of = collections.Counter(names.get(how, list)())
  copies = lambda n: f" ({n} records)" if n > 1 else ""
  return Deleted(len(records), tuple(f"{code(name)}{copies(n)}" for name, n in of.items()))


def _listed(fields: Mapping[str, Any]) -> str:
  return ", ".join(f"{name}={value}" for name, value in fields.items() if value is not None)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  """JSON's lists as the tuples that they were."""
  return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
