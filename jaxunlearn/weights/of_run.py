"""The newest weights of a run, with its config: what an export and samples begin with."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxunlearn import checkpoint, models
from jaxunlearn.mesh import sharding

NEEDED = ("model", "process", "ema", "data")  # of a run's config


class Newest(NamedTuple):
  """A network with the parameters that a run ended with, or has come to."""

  config: dict[str, Any]
  net: Any
  params: Any
  item: str  # ema or params
  step: int


def read(run: pathlib.Path, raw: bool = False, needed: Sequence[str] = NEEDED) -> Newest:
  """The averaged parameters (EMA), or the raw ones where the run keeps no average or `raw` asks.

  Raises:
    ValueError: no run there, a compartmentalised model, or no checkpoint of its config's model.
    Damaged: the newest checkpoint is damaged.
  """
  config = read_config(run, needed)
  net = models.make(**config["model"])
  item = "ema" if config["ema"] and not raw else "params"
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  params = checkpoint.read_params(run, sharding.shaped(sharding.make_mesh(1), shapes), item)
  return Newest(config, net, params, item, checkpoint.latest_step(run) or 0)


def read_config(run: pathlib.Path, needed: Sequence[str] = NEEDED) -> dict[str, Any]:
  """config.json of a run's working directory; raises ValueError where there is none."""
  path = run / "config.json"
  try:
    config = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"cannot read {path} ({error}); give a run's working directory") from error
  if isinstance(config, dict) and "sources" in config:
    raise ValueError(
      f"{run} is a compartmentalised model: many networks, and here one is needed; give a run of "
      "one model"
    )
  if not isinstance(config, dict) or not set(needed) <= config.keys():
    raise ValueError(f"{path} is not a run's; give a run's working directory")
  return config
