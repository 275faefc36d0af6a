"""Every field of every config has a rule, and a value outside it is refused in one line."""

import dataclasses
import importlib
import pathlib

import numpy as np
import pytest

from configs import common
from jaxunlearn import adapters, build, data, fields, methods, models, streams
from jaxunlearn.cdm import routers, sources
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.inputs import ranges

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
# Tables of what another command writes: tests/siss_sd_test.py checks their fields.
NEEDY = ("table_siss_sd", "table_little_sd")
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NEEDY)
NUMBERS = (int, float, np.number)
CLASSES = [
  *(type(methods.make(name)) for name in methods.names()),
  *(type(models.make(name)) for name in models.names()),
  *(type(data.make(name)) for name in data.names()),
  *(type(routers.make(name)) for name in routers.names()),
  *adapters.KINDS.values(),
  sources.Split,
  data.Forget,
  Diffusion,
  streams.Take,
]


def runs_of(name):
  """The configs of the runs of a file of configs/; of a pipeline, one of each kind of method."""
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config() if hasattr(module, "get_config") else common.get_config()
  if "runs" not in config:
    return [config]
  return list({run.method.name: run for run in config.runs.values()}.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_every_config_has_a_rule_that_holds(name):
  for config in runs_of(name):
    fields.check(config)
    rules = fields.rules_of(config)
    for path, value in fields.leaves(config, fields.FREE):
      first = value[0] if isinstance(value, tuple) and value else value
      number = isinstance(first, NUMBERS) and not isinstance(first, bool)
      assert isinstance(rules[path], ranges.Range) == number or value in (None, ()), path


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_number_of_a_dataclass_that_a_config_makes_has_a_range(cls):
  for path, rule in fields.of_dataclass(cls, "").items():
    assert rule in (str, bool, tuple) or isinstance(rule, ranges.Range), path


@pytest.fixture(scope="module")
def config():
  config = common.get_config()
  config.streams = {"x": {"take": "all", "first": 0}}
  config.model = {"name": "unet", **dataclasses.asdict(models.make("unet"))}
  return config


def outside(rule):
  """Values of the right and of wrong types that a rule refuses."""
  wrong = [None, "", "many", True, float("nan"), float("inf"), -float("inf"), {}, [], (), "a\nb"]
  if not isinstance(rule, ranges.Range):
    return [5, None, {}, "a\nb" if rule is str else 1.0]
  ends = [
    rule.low - 1,
    *([10**400, -(10**400)] if rule.whole else [1e300 if rule.high < 1e9 else ""]),
  ]
  ends += [rule.low] * rule.above + [rule.high] * rule.under + [0.5] * rule.whole
  refused = [value for value in wrong + ends if not rule.holds(value)]
  assert len(refused) > 8
  return refused


def test_every_field_refuses_what_is_outside_its_rule(config):
  """The path of the field and the value or its type are named, on one line."""
  copy = config.copy_and_resolve_references()
  for path, rule in fields.rules_of(config).items():
    group, _, name = path.rpartition(".")
    target = copy[group] if group else copy
    right = target[name]
    for value in outside(rule):
      if value is None and group == "sampler":
        continue  # as the scheduler of init_from has it
      with copy.unlocked(), copy.ignore_type():
        del target[name]  # and its type
        target[name] = value
      if type(target[name]) is not type(value) or isinstance(value, dict):
        continue  # ConfigDict makes a group of it, or 1.0 of True
      with pytest.raises(ValueError, match=rf"^config\.{path} is .*; use ") as error:
        fields.check(copy)
      assert "\n" not in str(error.value) and len(str(error.value)) < 300, path
    with copy.unlocked(), copy.ignore_type():
      del target[name]
      target[name] = right


@pytest.mark.parametrize(
  ("path", "value", "says"),
  [
    ("scheduler", 5, "config.scheduler is 5; use {}, or fields of scheduler_config.json"),
    ("scheduler", (), "config.scheduler is (); use {}, or fields of scheduler_config.json"),
    ("optimizer.clip", 0, "config.optimizer.clip is 0; use more than 0"),
    ("optimizer.clip", -1, "config.optimizer.clip is -1; use more than 0"),
    ("ema", 1.0, "config.ema is 1; use 0 to under 1"),
    ("seed", 2**32, "config.seed is 4294967296; use at most 4294967295"),
    ("train.steps", -1, "config.train.steps is -1; use a whole number, 0 or more"),
    ("mesh.data", 0, "config.mesh.data is 0; use a whole number, 1 or more, or -1"),
    ("eval.before", "yes", "config.eval.before is 'yes'; use True or False"),
    ("eval.metrics", "nll", "config.eval.metrics is 'nll'; use names, like ('a', 'b')"),
    ("process.T", 0, "config.process.T is 0; use a whole number, 1 to 1000000"),
    ("method.c_dropout", 2, "config.method.c_dropout is 2; use 0 to 1"),
    ("streams.x.first", -1, "config.streams.x.first is -1; use a whole number, 0 or more"),
    ("streams.x.frist", 1, "config.streams.x has no field 'frist' (did you mean 'first'?)"),
    ("optimizer.lr", 1.0, "config has no field 'optimizer.lr'"),
  ],
)
def test_what_is_said(config, path, value, says):
  copy = config.copy_and_resolve_references()
  group, _, name = path.rpartition(".")
  target = copy
  for part in group.split(".") if group else ():
    target = target[part]
  with copy.unlocked(), copy.ignore_type():
    target[name] = value
  with pytest.raises(ValueError) as error:
    build.build(copy)
  assert str(error.value).startswith(says)


def test_a_field_that_is_missing(config):
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    del copy.train["steps"]
  with pytest.raises(ValueError, match=r"^config.train.steps is missing; begin with get_config of"):
    fields.check(copy)
  with copy.unlocked():
    del copy["data"]
  with pytest.raises(ValueError, match=r"^config.data is None; begin with get_config of"):
    fields.check(copy)
