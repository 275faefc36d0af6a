"""What a run was, read from its config: its kind, its title, and the facts of its header.

training      nothing is deleted: pretraining, or training further
retraining    from scratch, without what is to be forgotten
naive         fine-tuned on the rest alone
unlearning    trained against what is to be forgotten, or in its place
attack        on a model that has unlearned
compartments  a network a source (CDM)
measuring     no step at all: a model as it is
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxunlearn import adapters, data, methods, models, streams
from jaxunlearn.models import text_to_image
from jaxunlearn.reports import names

DELETING = ("retraining", "naive", "unlearning")
INVERTED = {"token_inversion": "a new word"}  # what an inversion moves, if not the embedding
Config = Mapping[str, Any]  # a run's config.json; fields may be missing
_DELETES = {("x", "retain"), ("a", "forget")}  # streams of a run that deletes


def kind(config: Config) -> str:
  """One of the kinds above."""
  if "sources" in config:
    return "compartments"
  if config.get("attack"):
    return "attack"
  if _is_left(config):
    return "measuring"
  if not deletes(config):
    return "training"
  if config.get("method", {}).get("name") != "denoising":
    return "unlearning"
  return "naive" if config.get("init_from") else "retraining"


def _is_left(config: Config) -> bool:
  """Whether the run leaves a model as it is: no step, and nothing that a method does before one."""
  idle = config.get("method", {}).get("name") == "denoising"
  return idle and config.get("train", {}).get("steps") == 0


def deletes(config: Config) -> bool:
  """Whether the run kept its forget set out of its data, or trained against it; no attack does."""
  other = config.get("attack") or "sources" in config or _is_left(config)
  if other or not deleted(config):
    return False
  taken = takes(config)
  shown = any(take.c == "forget" or ":" in take.c for take in taken.values())
  return shown or bool({name: take.take for name, take in taken.items()}.items() & _DELETES)


def takes(config: Config) -> dict[str, streams.Take]:
  """What the method reads, by stream: not all that the config lists."""
  given, name = config.get("streams", {}), config.get("method", {}).get("name")
  read = methods.make(**config["method"]).streams if name in methods.names() else tuple(given)
  return {stream: streams.as_take(given[stream]) for stream in read if stream in given}


def deleted(config: Config) -> str:
  """What config.forget selects, in words; "" for nothing."""
  forget = config.get("forget", {})
  if label := forget.get("label"):
    return f"the {names.thing(label)}" if label in names.THINGS else f"the class {label}"
  if forget.get("style"):
    return f"the style {forget['style']}"
  if forget.get("file"):
    return f"the records listed in {forget['file']}"
  ids = [str(name) for name in forget.get("ids") or ()]
  count = lambda noun: f"{len(ids)} {noun}{'s' * (len(ids) > 1)}"
  digests = all(name.startswith(data.SHA256) for name in ids)
  what = f"every copy of {count('file')}" if digests else count("record")
  shown = ", ".join(map(_short, ids[:3])) + (", …" if len(ids) > 3 else "")
  return f"{what} ({shown})" if ids else ""


def target(config: Config) -> str:
  """The same by its name alone: Trouser, T-shirt, twemoji, or `the target` of records."""
  forget = config.get("forget", {})
  if forget.get("label") or forget.get("style"):
    return names.thing(forget.get("label") or forget["style"])
  name = config.get("eval", {}).get("target_name", "target")
  return names.thing(name) if deleted(config) else ""


def in_sentence(config: Config) -> str:
  """The same as a sentence has it: `the T-shirt`; a class or a style by its name alone."""
  name, forget = target(config), config.get("forget", {})
  thing = name in names.THINGS.values() or not (forget.get("label") or forget.get("style"))
  return f"the {name}" if name and thing and not name.startswith("the ") else name


def _short(name: str) -> str:
  """A digest by its first digits."""
  digits = len(data.SHA256) + 12
  return f"{name[:digits]}…" if name.startswith(data.SHA256) and len(name) > digits else name


# The title, and the line that a run opens with.


def opening(config: Config, records: int, devices: Sequence[Any], done: int = 0) -> str:
  """`Deleting the T-shirt with SISS (63 records), from assets:x: 100 steps of 64 rows, on 1 x cpu`.

  Args:
    records: how many are to be forgotten.
    done: the step of the newest checkpoint.
  """
  count = f" ({records:,} record{'s' * (records != 1)})" if records and deletes(config) else ""
  start = f", from {config['init_from']}" if config.get("init_from") and deletes(config) else ""
  steps, batch = config["train"]["steps"], config["train"]["batch"]
  again = f", going on after step {done}" if done else ""
  where = f"{len(devices)} x {getattr(devices[0], 'device_kind', 'device')}"
  work = f"{steps:,} step{'s' * (steps != 1)} of {batch} rows"
  return f"{title(config)}{count}{start}: {work}{again}, on {where}"


def title(config: Config, compartments: Mapping[str, Any] | None = None) -> str:
  what, method = deleted(config), config.get("method", {}).get("name", "")
  source, origin = names.source(config.get("data", {}).get("source", "")), origin_of(config)
  earlier = len(config.get("forget", {}).get("earlier") or ())
  after = f", after {earlier} earlier deletion{'s' * (earlier > 1)}" if earlier else ""
  verb = "Unlearning" if what.startswith(("the class", "the style")) else "Deleting"
  return {
    "training": lambda: _training(config, source),
    "retraining": lambda: f"Training without {what}, from scratch",
    "naive": lambda: f"{verb} {what} by training on the rest{after}",
    "unlearning": lambda: f"{verb} {what} with {names.method(method)}{after}",
    "attack": lambda: _attack(config),
    "compartments": lambda: _compartments(config, compartments or {}, source),
    "measuring": lambda: f"Measuring {origin}, as it is",
  }[kind(config)]()


def _training(config: Config, source: str) -> str:
  if not config:
    return "A run"
  further = f" further, from {config['init_from']}" if config.get("init_from") else ""
  return f"Training{further}" + (f" on {source}" if source else "")


def _attack(config: Config) -> str:
  wanted, model = in_sentence(config), origin_of(config)
  still = {
    "paraphrase": f"Asking {model} for {wanted} in other words",
    "completion": f"Letting {model} complete noised pictures of {wanted}",
    "rounding": f"Rounding the weights of {model} to {config.get('init_bits')} bits",
  }
  if config["attack"] in still:
    return still[config["attack"]]
  method = config.get("method", {}).get("name", "")
  how = {
    "inversion": f"by {INVERTED.get(method, 'its embedding')} alone, ",
    "prompt_search": "by tokens before its prompts, ",
  }.get(config["attack"], "")
  return f"Relearning {wanted} {how}from {learnt_from(config)}, on {origin_of(config)}"


def learnt_from(config: Config) -> str:
  """What an attack shows the model: `10 images`, `what is kept`, ..."""
  return " and ".join(_shown(take) for take in takes(config).values())


def _shown(take: streams.Take) -> str:
  kind, _, name = take.take.partition(":")
  images = f"{take.first} image{'s' * (take.first > 1)}" if take.first else "all images"
  return {
    "forget": images,
    "retain": "what is kept",
    "all": "all data",
    "samples": f"samples of {name}",
    "data": f"other data, {names.source(name)}",
    "class": f"the class {name}",
    "style": f"the style {name}",
  }[kind]


def _compartments(config: Config, compartments: Mapping[str, Any], source: str) -> str:
  split = config["sources"]
  count = len(compartments.get("sources", ())) or split.get("n", 0)
  if count == 1:
    return f"One network for all of {source}, the monolith"
  by = str(split.get("by", "")).partition(":")[0]
  how = {"uniform": ", split at random", "": ""}.get(by, f", split by {by}")
  number = f"{count} compartments" if count else "Compartments"
  return f"{number} of {source}{how}"


def origin_of(config: Config) -> str:
  return config.get("init_from") or "random parameters"


def base_of(config: Config) -> str:
  """What the first of the runs began with that this one comes from, as far as they are there."""
  origin = config.get("init_from", "")
  path = pathlib.Path(origin) / "config.json"
  if origin and (pathlib.Path(origin) / "checkpoints").is_dir() and path.is_file():
    return base_of(json.loads(path.read_text())) or origin
  return origin


def origins(config: Config) -> str:
  """Where it started, and what that began with: `runs/a, which began with hub:OWNER/NAME`."""
  first = base_of(config)
  further = f", which began with {first}" if first and first != config.get("init_from") else ""
  return origin_of(config) + further


def trained(config: Config) -> str:
  """`43,962,560 parameters, those of attn2; 938,618,884 stay as in PLACE`; "" where all are."""
  kind = adapters.Trained(**config.get("trained", {}))
  if kind.everything:
    return ""
  net = models.make(**config["model"])
  parts = jax.eval_shape(
    lambda key, whole: kind.split(key, kind.extended(net, whole)),
    jax.random.key(0),
    text_to_image.with_prefix(models.shapes(net), config.get("prompts"), net),
  )
  own, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts)
  return f"{own:,} parameters, {_which(kind)}; {frozen:,} stay as in {origin_of(config)}"


def _which(kind: adapters.Trained) -> str:
  """What of a network is trained, in words."""
  found = kind.pattern or "every kernel"
  if kind.rank:
    return f"LoRA of rank {kind.rank} and alpha {kind.alpha:g} on {found}"
  added = {"prompts": "the states of its prompts", "token": "the embedding of a new token"}
  return added.get(kind.pattern, f"those of {found}")


# The header.


def facts(
  config: Config,
  metrics: Sequence[Mapping[str, Any]],
  compartments: Mapping[str, Any] | None = None,
) -> dict[str, str]:
  """The header's lines: what was run on what, from where."""
  train, section = config.get("train", {}), config.get("data", {})
  done = max((line["step"] for line in metrics), default=0)
  method = _named(names.method, config.get("method", {}), "name")
  lines = {
    "Method": method or "not recorded",
    **_of_kind(config, compartments or {}),
    "Steps": f"{done} of {train.get('steps', 'unknown')}, batch {train.get('batch', 'unknown')}",
    "Started from": origins(config),
    **({"Trained": told} if (told := trained(config)) else {}),
    "Data": _named(names.source, section, "source") or "not recorded",
    "Seed": str(config.get("seed", "not recorded")),
  }
  if "sources" in config:
    lines["Steps"] = f"{train.get('steps')} of each source, batch {train.get('batch')}"
  return lines


def _of_kind(config: Config, compartments: Mapping[str, Any]) -> dict[str, str]:
  forget = config.get("forget", {})
  single = forget.get("ids") or forget.get("file")
  copies = single and forget.get("copies") == "forget"
  what = deleted(config) + (", and every byte copy" if copies else "")
  lines: dict[str, Callable[[], dict[str, str]]] = {
    "training": lambda: {"Deleted": "nothing"},
    "retraining": lambda: {"Left out": what},
    "naive": lambda: {"Deleted": what},
    "unlearning": lambda: {"Deleted": what},
    "attack": lambda: {"Unlearned before": what, "Shown": learnt_from(config)},
    "compartments": lambda: {
      "Each source": _named(names.compartment, config.get("compartment", {}), "name"),
      "Deleted": "; ".join(compartments.get("deleted", ())) or "nothing",
    },
    "measuring": lambda: {"Looked for": what or "nothing"},
  }
  return lines[kind(config)]()


def _named(called: Any, section: Mapping[str, Any], key: str) -> str:
  """`SISS (λ 0.5)` from {"name": "siss", "lam": 0.5}."""
  fields = names.fields(section, key)
  return called(str(section.get(key, ""))) + (f" ({fields})" if fields else "")
