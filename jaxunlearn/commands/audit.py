"""Attack a model of anybody's that is said to have unlearned something; report what comes back.

    jaxunlearn audit --model=FOLDER --before=FOLDER --forget=style:mosaic --data=emoji_styles \\
        --template="{class} emoji in {style} style" --classifier=decoded_objects \\
        --style_classifier=decoded_styles --minutes=60 --out=audits/mosaic

--model, --before (the model it was made of) and --retrained (one that never saw it: the yardstick)
are each a pipeline's folder in diffusers' layout, hub:OWNER/NAME, assets:NAME or a run; `jaxunlearn
convert` makes such a folder of a single file, or of a base and a LoRA. --data is a source by name,
or a folder of pictures in STYLE/CLASS folders, which --size resizes. --forget names one of its
classes, or style:NAME. Both classifiers judge what samples show.

The attacks are those of configs/attack_little_sd.py, the cheap ones first; when --minutes are over
no further one begins. OUT gets report.html, audit.md and audit.json, which `jaxunlearn leaderboard`
sets beside others. Launched again, it goes on.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxunlearn import data, errors, latents, pipeline, prompts
from jaxunlearn.commands import configs, guard

STYLE = "style:"
ATTACKS = (  # as of attack_little_sd.py, with learning rates: the cheap ones first
  ("int4", 0.0),
  ("int8", 0.0),
  ("completion", 0.0),
  ("few_10", 1e-5),
  ("few_10_lora", 1e-4),
  ("prompt_search", 1e-2),
  ("states", 1e-2),
  ("token", 5e-3),
  ("dimra_retain", 1e-5),
)
SCALED = 10  # times the rates of fine-tuning, for models of few parameters: --small


@dataclasses.dataclass(frozen=True)
class Asked:
  """The flags."""

  model: str
  before: str
  forget: str
  data: str
  out: pathlib.Path
  retrained: str = ""
  template: str = ""
  classifier: str = ""
  style_classifier: str = ""
  size: int = 512
  minutes: float = 0.0
  attacks: Sequence[str] = ()
  samples: int = 96
  steps: int = 50
  guidance: float = 6.5
  small: bool = False

  def __post_init__(self) -> None:
    for name in self.attacks:
      errors.check_choice("attack", name, [attack for attack, _ in ATTACKS])
    for name in ("minutes", "guidance"):
      if getattr(self, name) < 0:
        raise ValueError(f"--{name} is {getattr(self, name):g}; use 0 or more")
    for name in ("samples", "steps", "size"):
      if getattr(self, name) < 1:
        raise ValueError(f"--{name} is {getattr(self, name)}; use 1 or more")


def make(asked: Asked) -> ConfigDict:
  """The pipeline of an audit: each model as it is, and every attack on it, in order of cost."""
  configs.expose()
  from configs import attack_little_sd as attacks
  from configs import audits

  base, suffix = _base(asked), audits.suffix
  chosen = [one for one in ATTACKS if not asked.attacks or one[0] in asked.attacks]
  chosen = [(name, rate * SCALED if asked.small else rate) for name, rate in chosen]
  models = {"before": asked.before, "model": asked.model, "retrained": asked.retrained}
  runs = {name: _measured(base, origin) for name, origin in models.items() if origin}
  titles = {f"ar_{name}": f"AR {name.replace('_', ' ')}" for name, _ in chosen}
  for attack in chosen:
    for name in [name for name in ("model", "retrained") if name in runs]:
      run = attacks.attack(runs[name].copy_and_resolve_references(), *attack)
      runs[f"{name}@{suffix(attack)}"] = run
  return ConfigDict(
    {
      "runs": ConfigDict(runs, sort_keys=False),
      "rows": tuple((name, (name,), ()) for name in models if name in runs),
      "attacks": tuple((f"ar_{one[0]}", titles[f"ar_{one[0]}"], (suffix(one),)) for one in chosen),
      "columns": (
        *(("ua", "UA"), ("ira", "IRA"), ("cra", "CRA"), ("worst_ira", "worst kept")),
        *titles.items(),
      ),
      "published": (),
      "out": str(asked.out / "audit"),
      "audited": "model",
    }
  )


def _base(asked: Asked) -> ConfigDict:
  """What the runs share: data, prompts, and how samples are made and judged."""
  from configs import common

  config = common.get_config()
  config.model = ConfigDict({"name": "pretrained", "dtype": "float32"})
  config.prompts = ConfigDict(dataclasses.asdict(prompts.Options(template=asked.template)))
  config.codec = ConfigDict(dataclasses.asdict(latents.Options()))
  if asked.data in data.names():
    config.data = common.source(asked.data)
  else:
    fields = {"path": asked.data, "layout": "style/class", "size": asked.size, "heldout": 10}
    config.data = common.source("folder", **fields)
  style = asked.forget.startswith(STYLE)
  config.forget["style" if style else "label"] = asked.forget.removeprefix(STYLE)
  config.eval.update(
    classifier=asked.classifier,
    style_classifier=asked.style_classifier,
    metrics=("unlearning_accuracy", "kept_accuracy"),
    probe_metrics=("unlearning_accuracy",),
    samples=asked.samples,
    sampler="ddim",
    steps=asked.steps,
    guidance=asked.guidance,
  )
  return config


def _measured(base: ConfigDict, origin: str) -> ConfigDict:
  """The model as it is."""
  config = base.copy_and_resolve_references()
  config.init_from, config.streams.x = origin, "retain"
  config.train.update(steps=0, batch=32)
  config.eval.update(before=False, asked=base.eval.samples // 2, batch=16)
  return config


def run(asked: Asked) -> None:
  """Runs the audit; raises what pipeline.run raises."""
  pipeline.run(make(asked), asked.out / "runs", asked.minutes)


def start() -> int:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn audit",
    description=__doc__.split("\n\n")[0],
    epilog=f"Attacks: {', '.join(name for name, _ in ATTACKS)}.",
  )
  add = parser.add_argument
  for name in ("model", "before", "forget", "data"):
    add(f"--{name}", required=True, metavar="X", help=_HELP[name])
  add("--out", required=True, type=pathlib.Path, metavar="DIR", help="where the report goes")
  for field in dataclasses.fields(Asked)[5:]:
    kind = type(field.default)
    more: dict[str, Any] = {"type": kind, "default": field.default, "metavar": "X"}
    if kind is bool:
      more = {"action": "store_true"}
    if kind is tuple:
      more = {"action": "append", "default": [], "metavar": "NAME"}
    add(f"--{field.name}", help=_HELP[field.name], **more)
  words = vars(parser.parse_args())
  return guard.guarded(lambda: run(Asked(**words)))


_HELP = {
  "model": "the model to be audited",
  "before": "the model that it was made of",
  "forget": "the class that it is to have unlearned, or style:NAME",
  "data": "a source by name, or a folder of STYLE/CLASS/PICTURE",
  "retrained": "a model that never saw it: the yardstick",
  "template": "of prompts, like 'A {class} image in {style} style.'",
  "classifier": "of classes, by name or file",
  "style_classifier": "of styles",
  "size": "pixels a side of pictures from a folder",
  "minutes": "after which no further attack begins; 0: all are made",
  "attacks": "one of those below; may be repeated; all without it",
  "samples": "kept samples for each model; half as many ask for what is gone",
  "steps": "of DDIM",
  "guidance": "w, the scale less one",
  "small": "ten times the learning rates, for small models",
}
