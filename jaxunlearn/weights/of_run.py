"""The newest weights of a run, with its config: what an export and samples begin with."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging

from jaxunlearn import adapters, checkpoint, models
from jaxunlearn.mesh import sharding
from jaxunlearn.models import text_to_image
from jaxunlearn.weights import layout, pretrained, rounding

Config = Mapping[str, Any]
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
  params = whole(run, net, sharding.make_mesh(1), item)
  return Newest(config, net, params, item, checkpoint.latest_step(run) or 0)


def start(origin: str, net: Any, seed: int, mesh: jax.sharding.Mesh, bits: int = 0) -> Any:
  """All parameters that init_from names (host arrays): random ones, a run's, or a folder's.

  `bits` rounds their kernels: rounding.py.

  Raises:
    ValueError: no such place, or weights of another network.
    Damaged: the run's newest checkpoint is damaged.
  """
  return rounding.rounded(_origin(origin, net, seed, mesh), bits)


def begun(config: Config, net: Any, mesh: jax.sharding.Mesh) -> Any:
  """All parameters that a run of that config starts with, tokens before its prompts among them.

  Raises:
    ValueError, Damaged: as of `start`, or no room for those tokens.
  """
  params = start(config["init_from"], net, config["seed"], mesh, config.get("init_bits", 0))
  return _for_prompts(params, config, net)


def _for_prompts(params: Any, config: Config, net: Any) -> Any:
  """With what config.prompts adds. A table of other prompts is left out: their text is encoded."""
  section = config.get("prompts") or {}
  if "states" in params:
    origin = pathlib.Path(config["init_from"])
    older = _trained(origin)[1].get("prompts") or {}
    if other := [name for name in older if name in section and older[name] != section[name]]:
      logging.info("config.prompts has another %s than %s: prompts are encoded", other[0], origin)
      params = {name: tree for name, tree in params.items() if name != "states"}
  return text_to_image.with_prefix(params, section, net)


def _origin(origin: str, net: Any, seed: int, mesh: jax.sharding.Mesh) -> Any:
  if not origin:
    return jax.jit(net.init)(jax.random.key(seed))
  folder = layout.locate(origin)
  if (folder / "checkpoints").is_dir():
    return whole(folder, net, mesh, "params")
  return pretrained.load(folder, models.shapes(net))


def whole(run: pathlib.Path, net: Any, mesh: jax.sharding.Mesh, item: str) -> Any:
  """All parameters of a run: those that it trained, and those that it began with and left alone."""
  trained, params, frozen = parts(run, net, mesh, item)
  return params if trained.everything else jax.device_get(trained.whole(frozen, params))


def parts(
  run: pathlib.Path, net: Any, mesh: jax.sharding.Mesh, item: str
) -> tuple[adapters.Trained, Any, Any]:
  """What a run trained: in words, as it came to be, and what it left alone."""
  target = lambda tree: sharding.shaped(mesh, tree, sharding.replicated(mesh))
  trained, config = _trained(run)
  bare = dataclasses.replace(net, book=None) if isinstance(net, text_to_image.Net) else net
  if trained.everything:
    shapes = _shapes(bare, config)
    return trained, checkpoint.read_params(run, target(shapes), item), {}
  base = begun(config, net, mesh)
  base = trained.extended(bare, base)
  params, frozen = trained.split(split_key(config["seed"]), base)
  shapes = jax.eval_shape(lambda: params)
  return trained, checkpoint.read_params(run, target(shapes), item, frozen=frozen), frozen


def _shapes(net: Any, config: Config) -> Any:
  """Where a run of that config starts: with what the runs that it comes from added."""
  shapes, origin = models.shapes(net), config.get("init_from", "")
  if origin and (pathlib.Path(origin) / "checkpoints").is_dir():
    trained, older = _trained(pathlib.Path(origin))
    shapes = jax.eval_shape(functools.partial(trained.extended, net), _shapes(net, older))
  return _for_prompts(shapes, config, net)


def split_key(seed: int) -> jax.Array:
  """The key that a run draws its LoRA by."""
  return jax.random.fold_in(jax.random.key(seed), 2**32 - 2)


def _trained(run: pathlib.Path) -> tuple[adapters.Trained, dict[str, Any]]:
  """What a run trained, and its config; all of it where none stands there."""
  path = run / "config.json"
  config = layout.read_json(path) if path.is_file() else {}
  return adapters.Trained(**config.get("trained", {})), config


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
