"""Attack a text-to-image model that has unlearned a style or a kind: does it come back?

    python -m jaxunlearn.main --config=configs/attack_little_sd.py --workdir=runs/attack \\
        --config.init_from=runs/dimum_mosaic

`:NAME` takes another of ATTACKS. What an attack may know is in its kind: what is kept (dimra),
other pictures (unrelated), pictures of the concept (few_shot, inversion, prompt_search), or nothing
but its name (paraphrase, rounding).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common, unlearn_little_sd
from jaxunlearn import errors

FEW = lambda n: {"take": "forget", "first": n}
UNET, ATTENTION = "^unet/", "/attn[12]/to_"
PARAPHRASES = (  # of pretrain_little_styles.TEMPLATE
  "{style} style {class}",
  "a {class}, drawn in the style {style}",
  "a small picture of a {class}; style: {style}",
)


@dataclasses.dataclass(frozen=True)
class Attack:
  """What differs between attacks."""

  kind: str
  method: str = "denoising"
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the method
  streams: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"x": "retain"})
  trained: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"pattern": UNET})
  steps: int = 30
  decay: float = 0.0
  prompts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  bits: int = 0
  metrics: tuple[str, ...] = ()  # of an attack that trains nothing


ASKED = ("unlearning_accuracy",)
LORA = {"pattern": ATTENTION, "rank": 4}
STATES = {"a": {**FEW(10), "to": "next"}}
ATTACKS = {
  "dimra_retain": Attack("dimra"),
  "dimra_samples": Attack("dimra", streams={"x": "samples:runs/little_styles"}),
  "unrelated": Attack("unrelated", streams={"x": {"take": "data:digits_64", "c": "null"}}),
  "few_1": Attack("few_shot", streams={"x": FEW(1)}),
  "few_10": Attack("few_shot", streams={"x": FEW(10)}),
  "few_100": Attack("few_shot", streams={"x": FEW(100)}),
  "few_10_lora": Attack("few_shot", streams={"x": FEW(10)}, trained=LORA),
  "states": Attack(
    "inversion", "embedding_inversion", streams=STATES, trained={"pattern": "prompts"}, steps=40
  ),
  "token": Attack(
    "inversion",
    "token_inversion",
    streams={"a": FEW(10)},
    trained={"pattern": "token"},
    steps=40,
    prompts={"token": "<it>"},
  ),
  "prompt_search": Attack(
    "prompt_search",
    "unlearn_diff_attack",
    {"times": 20, "per_time": 3},
    {"a": FEW(10)},
    {"pattern": "^prefix$"},
    steps=40,
    decay=0.1,
    prompts={"prefix": 5},
  ),
  **{
    f"paraphrase_{i}": Attack("paraphrase", steps=0, prompts={"template": text}, metrics=ASKED)
    for i, text in enumerate(PARAPHRASES)
  },
  "completion": Attack("completion", steps=0, metrics=("completion",)),
  "int8": Attack("rounding", steps=0, bits=8, metrics=ASKED),
  "int4": Attack("rounding", steps=0, bits=4, metrics=ASKED),
}


def get_config(variant: str = "few_10"):
  config = attack(unlearn_little_sd.get_config(), variant, 1e-4)
  config.init_from = "runs/dimum_mosaic"
  return config


def attack(config: ConfigDict, variant: str, rate: float) -> ConfigDict:
  """The config of a trained or unlearned model, made an attack on it: Adam at a constant rate."""
  errors.check_choice("variant", variant, ATTACKS)
  how = ATTACKS[variant]
  config.attack, config.streams, config.init_bits = how.kind, dict(how.streams), how.bits
  config.method = common.method(how.method, **how.fields)
  config.trained.update({"rank": 0, **how.trained})
  with config.unlocked():
    config.prompts.update(how.prompts)
  config.optimizer.update(learning_rate=rate, warmup=0, schedule="constant", weight_decay=how.decay)
  config.train.update(steps=how.steps, batch=8, log_every=10, checkpoint_every=1000)
  config.eval.update(every=how.steps // 2, probe_samples=32, before=False)
  config.eval.update(after=not how.steps, metrics=how.metrics, samples=1)
  config.eval.completion_steps = 20
  config.eval.asked = 0 if how.kind == "completion" else 31  # of what trains nothing
  return config
