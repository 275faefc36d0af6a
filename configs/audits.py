"""What the audits share: every method on every target, attacked, as the runs of one pipeline.

Not a run of its own; audit_fashion.py and audit_emoji.py are.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from configs import attack_fashion, unlearn_fashion

# label of the row -> variant of unlearn_fashion
METHODS = {
  "embedding copy": "embedding_copy",
  "NegGrad": "neggrad",
  "SalUn": "salun",
  "SFR-on": "sfron",
  "Selective Amnesia": "selective_amnesia",
  "Selective Amnesia, λ = 1/(2T)": "selective_amnesia_laplace",
  "EraseDiff": "erasediff",
  "EraseDiff, BOME": "erasediff_bome",
  "ESD": "esd",
  "DiMUM": "dimum",
  "DiMUM, meta": "dimum_meta",
}
Attacks = Sequence[tuple[str, str, Sequence[tuple[str, float]]]]
Make = Callable[[ConfigDict, str, str], ConfigDict]


@dataclasses.dataclass(frozen=True)
class Kit:
  """What an audit's runs are made by."""

  # label of the row -> variant; FIRST+SECOND goes on from the run of FIRST, of the same target and
  # seed
  methods: Mapping[str, str]
  origin: str  # of the base model
  retrained: Callable[[str], str]  # target -> the model retrained without it; "": none is there
  unlearning: Make  # (config, origin, variant), which may change the config
  attack: Callable[[ConfigDict, str, float], ConfigDict]  # (config, variant, rate), likewise
  means: Sequence[str] = ("ar_few_10",)  # metrics of attacks whose mean over probes is shown too
  evidence: bool = True  # whether membership and the verdict are in the table
  # more of them, run on those targets alone that a model was retrained without
  defences: Mapping[str, str] = dataclasses.field(default_factory=dict)


def audit(
  name: str,
  base: ConfigDict,
  targets: Mapping[str, str],
  attacks: Attacks,
  columns: Sequence[tuple[str, str]],
  seeds: Sequence[int],
  models: str = "",
  apart: bool = False,
  kit: Kit | None = None,
) -> ConfigDict:
  """The pipeline results/audit_NAME, of the base model assets:pretrain_MODELS (or NAME).

  Args:
    base: the config of that model.
    targets: what to forget, each with its field of config.forget: label or style.
    attacks: of each the metric, the title, and variants of attack_fashion with learning rates.
    columns: the metrics before the attacks' and their titles.
    seeds: a run each, of every method on every target.
    apart: a row for each target, not one for all: a style is not forgotten as a class is.
    kit: what the runs are made by; None: unlearn_fashion.py and attack_fashion.py.
  """
  config = ConfigDict({"runs": {}, "rows": (), "out": f"results/audit_{name}", "published": ()})
  config.attacks = tuple(
    (metric, title, tuple(map(suffix, runs))) for metric, title, runs in attacks
  )
  evidence = (("membership_pia/deleted-auc", "AUC, PIA"), ("verdict", "verdict"))
  models = models or name
  kit = kit or fashion(models)
  shown = evidence if kit.evidence else ()
  titles = {metric: title for metric, title, _ in attacks}
  means = tuple((f"{metric}_mean", f"mean {titles[metric]}") for metric in kit.means)
  config.columns = (*columns, *titles.items(), *means, *shown)
  origin = kit.origin
  config.runs.replay = as_it_is(base, origin)
  config.runs.replay.eval.update(metrics=(), samples=1000, keep=True)

  def add(
    row: str,
    variant: str,
    make: Callable[[str], ConfigDict],
    attacked: bool = True,
    of: Mapping[str, str] = targets,
  ) -> None:
    names: dict[str, list[str]] = {}
    for target, field in of.items():
      label = f"{row}: {target}" if apart else row
      for seed in seeds:
        name = f"{variant}_{slug(target)}_{seed}"
        names.setdefault(label, []).append(name)
        run = make(target)
        run.forget[field] = target
        run.seed = run.eval.seed = seed
        if first := variant.rpartition("+")[0]:
          run.init_from = f"run:{first}_{slug(target)}_{seed}"
        if kit.evidence:
          run.eval.update(features=True, metrics=(*run.eval.metrics, "membership"))
          run.eval.update(membership_kept=250, membership_deleted=500)
        config.runs[name] = run
        for attack in [one for *_, runs in attacks for one in runs] if attacked else ():
          config.runs[f"{name}@{suffix(attack)}"] = attack_on(kit, run, name, *attack)
    config.rows += tuple((label, tuple(group), ()) for label, group in names.items())

  add("pretrained", "pretrained", lambda _: as_it_is(base, origin), attacked=False)
  known = {target: field for target, field in targets.items() if kit.retrained(target)}
  add("retrained", "retrained", lambda target: as_it_is(base, kit.retrained(target)), of=known)
  for of, methods in ((targets, kit.methods), (known, kit.defences)):
    for row, variant in methods.items():
      add(row, variant, lambda _, variant=variant: unlearned(kit, base, variant), of=of)
  return config


def fashion(models: str) -> Kit:
  """Class-conditional models in assets, by unlearn_fashion.py and attack_fashion.py."""
  retrained = lambda target: f"assets:retrain_{models}_{slug(target)}"
  origin = f"assets:pretrain_{models}"
  return Kit(METHODS, origin, retrained, unlearn_fashion.unlearning, attack_fashion.attack)


def as_it_is(base: ConfigDict, origin: str) -> ConfigDict:
  """A trained model: no step, evaluation only."""
  config = base.copy_and_resolve_references()
  config.init_from, config.ema, config.streams.x = origin, 0.0, "retain"
  config.train.update(steps=0, batch=32)
  config.eval.update(before=False, asked=base.eval.asked or 72, batch=32)
  return config


def unlearned(kit: Kit, base: ConfigDict, variant: str) -> ConfigDict:
  last = variant.rpartition("+")[2]
  config = kit.unlearning(base.copy_and_resolve_references(), kit.origin, last)
  if config.method.name == "selective_amnesia":
    config.streams.update(x="samples:run:replay", all="all_samples:run:replay")
  return config


def attack_on(kit: Kit, run: ConfigDict, name: str, variant: str, rate: float) -> ConfigDict:
  config = kit.attack(run.copy_and_resolve_references(), variant, rate)
  config.init_from = f"run:{name}"
  if variant == "dimra_samples":
    config.streams.x = "samples:run:replay"
  return config


def suffix(attack: tuple[str, float]) -> str:
  return f"{attack[0]}_{attack[1]:.0e}"


def slug(name: str) -> str:
  return "-".join(re.findall("[a-z0-9]+", name.lower()))
