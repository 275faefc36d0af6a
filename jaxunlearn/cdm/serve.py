"""Some sources of a run, or of an export, composed by themselves: no file of another is opened.

Read are config.json, the frozen backbone that it names, and of each source asked for its newest
parameters, its part of the router, how many records it has and of which conditions; no data. Two
people with rights to different sources share one folder, and what a source trained lies there once.

    RUN/shards/NAME/{checkpoints/, records.txt}, RUN/router/NAME.npz     of a run
    FOLDER/sources/NAME.safetensors, FOLDER/router/NAME.npz, FOLDER/composition.json    of an export
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

from jaxunlearn import adapters, checkpoint, errors, latents, models, weights
from jaxunlearn.cdm import compartment, compose, model, routers
from jaxunlearn.cdm.compose import Compartments
from jaxunlearn.diffusion import Diffusion, EpsFn
from jaxunlearn.mesh import sharding
from jaxunlearn.models import text_to_image
from jaxunlearn.weights import layout, of_run, pretrained, stable_diffusion

Tree = Any
CONFIG, EXPORTED = "config.json", "composition.json"


@dataclasses.dataclass(frozen=True)
class Composition:
  """Sources with what they stand on."""

  config: Mapping[str, Any]
  net: Any
  process: Diffusion
  codec: latents.Pixels | latents.Codec
  compartment: compartment.Compartment
  backbone: Tree
  router: routers.Weigher
  sources: Compartments

  def eps_fn(self, mode: str = "soft", guidance: float = 0.0) -> EpsFn:
    """The noise predictor of a mode: soft, topK, naive, step or trajectory."""
    how = model.mode_of(mode, ConfigDict(self.config["compose"]))
    apply = jax.tree_util.Partial(self.compartment.apply, self.backbone)
    return compose.compose(apply, self.sources, self.router, self.process, how, guidance)


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder holds sources: a run of a compartmentalised model, or an export of one."""
  path = folder / CONFIG
  return path.is_file() and "sources" in layout.read_json(path)


def takes_prompts(folder: pathlib.Path) -> bool:
  """Whether its model is text-to-image."""
  return layout.read_json(folder / CONFIG)["model"]["name"] == pretrained.TEXT_TO_IMAGE


def available(folder: pathlib.Path) -> tuple[str, ...]:
  """The names of the sources whose files are there."""
  if (folder / EXPORTED).is_file():
    return tuple(sorted(layout.read_json(folder / EXPORTED)["sources"]))
  return tuple(sorted(path.parent.name for path in folder.glob("shards/*/checkpoints")))


def read(
  folder: pathlib.Path, names: Sequence[str] = (), prompts: Sequence[str] = ()
) -> Composition:
  """The sources of those names, or all; prompts are the conditions of a text-to-image model.

  Raises:
    ValueError: no such source, one without a checkpoint, or a backbone that is not there.
    Damaged: a checkpoint is damaged.
  """
  config, there = layout.read_json(folder / CONFIG), available(folder)
  for name in names:
    errors.check_choice("source", name, there)
  names = tuple(sorted(set(names))) or there
  if not names:
    raise ValueError(f"{folder} has no trained source; launch the run again, it goes on")
  net, codec = models.make(**config["model"]), _codec(config)
  process, mesh = Diffusion(**config["process"]), sharding.make_mesh(1)
  backbone = None
  if config["init_from"]:
    backbone = of_run.start(config["init_from"], net, config["seed"], mesh)
    backbone = jax.tree.map(jnp.asarray, backbone)
  if isinstance(net, text_to_image.Net):
    net = _asked(config, net, prompts)
  one = compartment.make(adapters.make(**config["compartment"]), net, process)
  shapes = jax.eval_shape(lambda key: one.init(key, backbone), jax.random.key(0))
  params = [params_of(folder, name, shapes, config) for name in names]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  parts, told = model.stacked(net, [_part(folder / "router" / f"{name}.npz") for name in names])
  return Composition(
    config=config,
    net=net,
    process=process,
    codec=codec,
    compartment=one,
    backbone=backbone,
    router=routers.make(**config["router"]).on(net, backbone, codec),
    sources=Compartments(
      names,
      tuple(records(folder, name) for name in names),
      stacked,
      parts,
      told,
    ),
  )


def params_of(folder: pathlib.Path, name: str, shapes: Tree, config: Mapping[str, Any]) -> Tree:
  """What a source trained, host arrays: its average where the run keeps one."""
  if (folder / EXPORTED).is_file():
    flat = weights.read(folder / "sources" / f"{name}.safetensors")
    return traverse_util.unflatten_dict(flat, sep="/")
  mesh = sharding.make_mesh(1)
  target = sharding.shaped(mesh, shapes, sharding.replicated(mesh))
  item = "ema" if config["ema"] else "params"
  return jax.device_get(checkpoint.read_params(folder / "shards" / name, target, item))


def records(folder: pathlib.Path, name: str) -> int:
  """How many records a source has: its prior is their share."""
  if (folder / EXPORTED).is_file():
    return int(layout.read_json(folder / EXPORTED)["sources"][name]["records"])
  return len((folder / "shards" / name / "records.txt").read_text().splitlines())


def write(
  folder: pathlib.Path, composition: Composition, run: pathlib.Path, facts: Mapping[str, Any]
) -> None:
  """An export of that run: everything but the backbone, which config.json names."""
  for inner in ("sources", "router"):
    (folder / inner).mkdir(parents=True, exist_ok=True)
  sources = composition.sources
  for i, name in enumerate(sources.names):
    own = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), sources.params)
    flat = traverse_util.flatten_dict(own, sep="/")
    (folder / "sources" / f"{name}.safetensors").write_bytes(safetensors.numpy.save(flat))
    shutil.copyfile(run / "router" / f"{name}.npz", folder / "router" / f"{name}.npz")
  counts = zip(sources.names, sources.counts, strict=True)
  told = {**facts, "sources": {name: {"records": count} for name, count in counts}}
  (folder / CONFIG).write_text(json.dumps(composition.config, indent=2) + "\n")
  (folder / EXPORTED).write_text(json.dumps(told, indent=2) + "\n")


def _part(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise ValueError(f"{path} is not there: the run has not ended; launch it again")
  return model.read_part(path)


def _codec(config: Mapping[str, Any]) -> latents.Pixels | latents.Codec:
  options = config.get("codec", {})
  if not options.get("path"):
    return latents.PIXELS
  return stable_diffusion.read_codec(options["path"], options["batch"])


def _asked(
  config: Mapping[str, Any], net: text_to_image.Net, prompts: Sequence[str]
) -> text_to_image.Net:
  """The network whose prompts are those, numbered from 0."""
  words = stable_diffusion.read_tokenizer(config["prompts"]["tokenizer"])
  book = text_to_image.Book(words.encode([*prompts, ""]).ids)
  return dataclasses.replace(net, classes=(max(len(prompts), 1),), book=book)
