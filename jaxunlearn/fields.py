"""What every field of a config may be: checked in one walk, before any work.

A group that makes an object of a dataclass (GROUPS) has the ranges of its numbers in the types of
that dataclass; the other fields have them here. A field that stands nowhere is refused, with the
nearest one that does.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from absl import logging
from ml_collections import ConfigDict

from jaxunlearn import adapters, data, errors, latents, methods, models, prompts, streams
from jaxunlearn.cdm import routers, sources
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.inputs import ranges
from jaxunlearn.latents import loss
from jaxunlearn.models import vae
from jaxunlearn.weights import pretrained

Rule = ranges.Range | type  # of a number; or str, bool, tuple: a sequence of names

_Devices = Annotated[int, ranges.Range(1, ranges.LARGEST, whole=True, besides=(-1,))]
_Guidance = Annotated[float, ranges.Range(-1.0)]
_Decay = ranges.Under1

RULES: Mapping[str, Any] = {
  "seed": ranges.Seed,
  "init_from": str,
  "attack": str,
  "profile": str,
  "ema": _Decay,
  "ema_warmup": bool,
  "init_optimizer": bool,
  "init_bits": Annotated[int, ranges.Range(2, 16, whole=True, besides=(0,))],
  "mesh.data": _Devices,
  "mesh.fsdp": _Devices,
  "optimizer.learning_rate": ranges.AtLeast0,
  "optimizer.b1": _Decay,
  "optimizer.b2": _Decay,
  "optimizer.weight_decay": ranges.AtLeast0,
  "optimizer.clip": ranges.Above0 | None,
  "optimizer.warmup": ranges.From0,
  "optimizer.schedule": str,
  "train.steps": ranges.From0,
  "train.batch": ranges.Count,
  "train.micro_batches": ranges.Count,
  "train.gather_once": bool,
  "train.log_every": ranges.Count,
  "train.checkpoint_every": ranges.Count,
  "train.keep": ranges.Count,
  "train.synthetic": bool,
  "eval.before": bool,
  "eval.after": bool,
  "eval.every": ranges.From0,
  "eval.probe_samples": ranges.Count,
  "eval.probe_metrics": tuple,
  "eval.metrics": tuple,
  "eval.samples": ranges.Count,
  "eval.asked": ranges.From0,
  "eval.guidance": _Guidance,
  "eval.keep": bool,
  "eval.features": bool,
  "eval.batch": ranges.Count,
  "eval.sampler": str,
  "eval.steps": ranges.Count,
  "eval.seed": ranges.Seed,
  "eval.reference": str,
  "eval.target_name": str,
  "eval.classifier": str,
  "eval.style_classifier": str,
  "eval.target_radius": ranges.AtLeast0,
  "eval.inject_t": ranges.From0,
  "eval.inject_n": ranges.Count,
  "eval.completion_t": ranges.From0,
  "eval.completion_n": ranges.Count,
  "eval.completion_steps": ranges.Count,
  "eval.cra": str,
  "eval.seeds": ranges.Seeds,
  "eval.jpeg": Annotated[int, ranges.Range(0, 100, whole=True)],
  "eval.inception_weights": str,
  "eval.fid_resize": str,
  "eval.fid_batch": ranges.Count,
  "eval.sscd_weights": str,
  "eval.sscd_protocol": str,
  "eval.nll_probes": ranges.Count,
  "eval.nll_protocol": str,
  "eval.nll_tolerance": ranges.Above0,
  "eval.membership_attacks": tuple,
  "eval.membership_kept": ranges.Count,
  "eval.membership_deleted": ranges.Count,
  "eval.membership_heldout": ranges.Count,
  "eval.prompt_noises": ranges.Count,
  "eval.prompt_steps": ranges.Count,
  "eval.clip_iqa_weights": str,
  "eval.clip_weights": str,
  "eval.memorised_by": tuple,
  "eval.memorised_file": str,
  "eval.memorised_sscd": ranges.Share,
}
# Of a config of sources besides.
SOURCES: Mapping[str, Any] = {
  "sources.slices": ranges.Count,
  "sources.lanes": ranges.Count,
  "sources.mesh": _Devices,
  "sources.absent": tuple,
  "compose.modes": tuple,
  "compose.alone": bool,
  "compose.subset": tuple,
  "compose.over": str,
  "compose.block": ranges.Count,
  "compose.rows": ranges.From0,
  "compose.seed": ranges.Seed,
  "compose.attributed": ranges.From0,
  "compose.attribution_probes": ranges.Count,
  "compose.calibration_levels": ranges.Count,
}
# Group -> the field that names what it makes, and how; or the dataclass itself.
GROUPS: Mapping[str, tuple[str, Callable[[str], Any]] | type] = {
  "method": ("name", methods.make),
  "model": ("name", models.make),
  "data": ("source", data.make),
  "process": Diffusion,
  "sampler": sampling.Options,
  "forget": data.Forget,
  "trained": adapters.Trained,
  "compartment": ("name", adapters.make),
  "router": ("name", routers.make),
  "sources": sources.Split,
}
OF_SOURCES = ("compartment", "router", "sources")
OF_TEXT = {"prompts": prompts.Options, "codec": latents.Options}  # of a text-to-image config
# Of a config that trains an autoencoder: these rules, the optimiser's, and these groups alone.
AUTOENCODER = (
  *("seed", "ema", "train.steps", "train.batch", "train.log_every", "train.checkpoint_every"),
  "train.keep",
)
AUTOENCODER_GROUPS: Mapping[str, Any] = {
  "data": GROUPS["data"],
  "autoencoder": vae.Autoencoder,
  "loss": loss.Loss,
}
FREE = {"streams", "scheduler"}  # checked apart; an export's own words
# Of a config that lists runs.
LISTS = ("runs", "rows", "columns", "published", "out", "attacks", "audited", "paired", "success")


def check(config: ConfigDict) -> None:
  """Raises ValueError for the first field that is missing, is none, or has a wrong value."""
  rules = rules_of(config)
  if "autoencoder" not in config:
    _check_free(config)
  found = dict(leaves(config, FREE))
  for name, value in found.items():
    if name not in rules:
      raise ValueError(f"config has no field {name!r}{errors.nearest(name, rules)}")
    if value is not None or not name.startswith("sampler."):  # None: as init_from has it
      check_one(f"config.{name}", value, rules[name])
  missing = [name for name in (*RULES, *SOURCES) if name in rules and name not in found]
  if missing:
    raise ValueError(f"config.{missing[0]} is missing; begin with get_config of configs/common.py")


def _check_free(config: ConfigDict) -> None:
  """Raises ValueError for a wrong value of the fields that are FREE of rules."""
  if not isinstance(kept := config.get("scheduler"), Mapping | ConfigDict):
    shown = ranges.shown(kept)
    raise ValueError(f"config.scheduler is {shown}; use {{}}, or fields of scheduler_config.json")
  check_streams(config)


def names() -> set[str]:
  """Every name of a field, of whatever method, model or source."""
  makers = {"method": methods, "model": models, "data": data, "router": routers}
  made = [type(maker.make(name)) for maker in makers.values() for name in maker.names()]
  classes = [*made, *adapters.KINDS.values(), *(k for k in GROUPS.values() if isinstance(k, type))]
  of_classes = {field.name for cls in classes for field in dataclasses.fields(cls)}
  return of_classes | {part for path in (*RULES, *SOURCES) for part in path.split(".")}


def rules_of(config: ConfigDict) -> dict[str, Rule]:
  """The rule of every field of this config, by its path.

  Raises:
    ValueError: a group is missing, or names no method, model, source, compartment or router.
  """
  if "autoencoder" in config:
    return _of_autoencoder(config)
  of_sources = "sources" in config
  plain = {**RULES, **(SOURCES if of_sources else {})}
  rules = {name: ranges.of(rule) or rule for name, rule in plain.items()}
  for group, kind in GROUPS.items():
    if group not in OF_SOURCES or of_sources:
      rules |= _of_group(config, group, kind)
  for group, options in OF_TEXT.items():
    if group in config:
      rules |= of_dataclass(options, group)
  return rules


def _of_autoencoder(config: ConfigDict) -> dict[str, Rule]:
  mine = lambda name: name in AUTOENCODER or name.startswith("optimizer.")
  rules = {name: ranges.of(rule) or rule for name, rule in RULES.items() if mine(name)}
  for group, kind in AUTOENCODER_GROUPS.items():
    rules |= _of_group(config, group, kind)
  return rules


def _of_group(config: ConfigDict, group: str, kind: Any) -> dict[str, Rule]:
  fields = config.get(group)
  if not isinstance(fields, ConfigDict):
    raise ValueError(
      f"config.{group} is {ranges.shown(fields)}; begin with get_config of configs/common.py"
    )
  if isinstance(kind, type):
    return of_dataclass(kind, group)
  key, make = kind
  check_one(f"config.{group}.{key}", fields.get(key), str)
  if (group, fields[key]) == ("model", pretrained.NAME):
    return {f"model.{name}": type(value) for name, value in fields.items()}
  return {f"{group}.{key}": str, **of_dataclass(type(make(fields[key])), group)}


def of_dataclass(cls: type, group: str) -> dict[str, Rule]:
  """The ranges in its types; of a field without one, the type of its default."""
  numbers = ranges.of_fields(cls)
  rules: dict[str, Rule] = {}
  for field in dataclasses.fields(cls):
    name = f"{group}.{field.name}"
    if field.default_factory is not dataclasses.MISSING and field.init:  # a dataclass again
      rules |= of_dataclass(type(field.default_factory()), name)
    elif field.init and not field.metadata:
      rules[name] = numbers.get(field.name) or type(field.default)
  return rules


def leaves(config: ConfigDict, without: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
  """Every field that is no group with fields, by its path."""
  for name, value in config.items():
    if isinstance(value, ConfigDict) and len(value) and name not in without:
      yield from leaves(value, set(), f"{path}{name}.")
    elif name not in without:
      yield f"{path}{name}", value


def check_one(name: str, value: Any, rule: Rule) -> None:
  """Raises ValueError with field, value and rule, unless the rule holds."""
  if isinstance(rule, ranges.Range):
    ranges.check_one(name, value, rule)
  elif rule is tuple:
    if not isinstance(value, tuple | list) or not all(isinstance(one, str) for one in value):
      raise ValueError(f"{name} is {ranges.shown(value)}; use names, like ('a', 'b')")
  elif not isinstance(value, rule):
    kind = {str: "text", bool: "True or False"}.get(rule, rule.__name__)
    raise ValueError(f"{name} is {ranges.shown(value)}; use {kind}")
  elif isinstance(value, str) and not value.isprintable():
    raise ValueError(f"{name} is {ranges.shown(value)}; use text of one line")


def check_streams(config: ConfigDict) -> None:
  """Raises ValueError where a stream is neither words nor the fields of a `streams.Take`."""
  if not isinstance(config.get("streams"), Mapping | ConfigDict):
    raise ValueError(
      f"config.streams is {ranges.shown(config.get('streams'))}; name streams, like "
      "{'x': 'retain'}"
    )
  rules = of_dataclass(streams.Take, "")
  for name, what in config.streams.items():
    where = f"config.streams.{name}"
    if isinstance(what, str):
      check_one(where, what, str)
      continue
    if not isinstance(what, Mapping | ConfigDict):
      raise ValueError(
        f"{where} is {ranges.shown(what)}; use words, like retain, or {{'take': ...}}"
      )
    for key, value in what.items():
      if f".{key}" not in rules:
        near = errors.nearest(key, [rule[1:] for rule in rules])
        raise ValueError(f"{where} has no field {key!r}{near}")
      check_one(f"{where}.{key}", value, rules[f".{key}"])


def restored(tree: Any) -> Any:
  """A config of JSON, whose lists are the tuples that they were."""
  if isinstance(tree, dict):
    return {key: restored(value) for key, value in tree.items()}
  return tuple(map(restored, tree)) if isinstance(tree, list) else tree


def with_younger(
  old: dict[str, Any], new: Mapping[str, Any], path: str = "config"
) -> dict[str, Any]:
  """The old config with the fields that are younger than its run, as the new one has them.

  Each is told: the run goes on with it.
  """
  out = dict(old)
  for name, value in new.items():
    if name not in old:
      logging.warning(
        "this run began before %s.%s existed; it goes on with the value %s", path, name, value
      )
      out[name] = value
    elif isinstance(value, dict) and isinstance(old[name], dict):
      out[name] = with_younger(old[name], value, f"{path}.{name}")
  return out


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """`optimizer.clip 1.0 -> 0.5` of every field in which two configs differ, by its path."""
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return [] if old == new else [f"{path} {ranges.shown(old)} -> {ranges.shown(new)}"]
  dots = f"{path}." if path else ""
  names = sorted(old.keys() | new.keys())
  return [one for n in names for one in differences(old.get(n), new.get(n), f"{dots}{n}")]
