"""Metrics: one module a metric, each a function of a noise predictor.

    evaluate(eps_fn, task) -> {name: Value}

A `Value` carries its identity: two values are comparable only if their identities are equal.
To add a metric write one file here and name it in `config.eval.metrics`; the contract test
`tests/evals_test.py` runs over every module found.

An eps_fn that is a `jax.tree_util.Partial` is a pytree: it passes into jitted functions as an
argument, so that one compiled sampler serves every checkpoint of a model.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion, EpsFn

HELPERS = ("statistics", "digits")  # modules of this folder that are no metric


class Value(NamedTuple):
  """One number, its 95% interval where the sample gives one, and what was measured how."""

  value: float
  ci95: tuple[float, float] | None
  identity: str


@dataclasses.dataclass(frozen=True)
class Task:
  """What a metric may look at besides the eps_fn. Images are float32 [N, H, W, C] in [-1, 1]."""

  process: Diffusion
  target: np.ndarray  # the distinct images to forget
  heldout: np.ndarray  # kept kinds of images, never trained on
  heldout_label: np.ndarray  # [M] int32
  classes: tuple[str, ...]
  samples: np.ndarray  # generated from `eps_fn`, the same noise for every model
  identity: str  # how `samples` were made
  options: Any  # config.eval
  rng: jax.Array


def identity(**facts: Any) -> str:
  """The identity of a metric's value: `key=value` pairs separated by spaces."""
  return " ".join(f"{key}={value}" for key, value in facts.items())


def names() -> list[str]:
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS)


def metric(name: str) -> Callable[[EpsFn, Task], dict[str, Value]]:
  errors.check_choice("metric", name, names())
  return importlib.import_module(f"{__name__}.{name}").evaluate
