"""A compartmentalised model in its run directory: split, train, route, compose.

RUN/sources.csv      which record is of which source, by commitments (keys.py)
RUN/keys.txt         what opens them; what is deleted is no longer in either
RUN/shards/NAME/     what the source trained: records.txt, metrics.jsonl, checkpoints/
RUN/router/          what was fitted to weigh the sources
RUN/ledger.jsonl     who saw what when, with the hash of every file: ledger.py
RUN/evals, results.json, report.html   one phase a mode of composition
"""

import functools
import hashlib
import io
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxunlearn import adapters, build, data, errors, latents, train
from jaxunlearn.cdm import compartment, compose, conditions, routers, sources
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.cdm.keys import Keys, listed
from jaxunlearn.cdm.ledger import Ledger
from jaxunlearn.cdm.shards import Shard
from jaxunlearn.cdm.training import Training
from jaxunlearn.checkpoint import State
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evaluation import Place
from jaxunlearn.latents import cache
from jaxunlearn.mesh import processes, sharding
from jaxunlearn.reports import writer

Tree = Any
FILES = ("compartments.json", "calibration.md", "attribution.csv")  # of explain.py
LEDGER_FIELDS = ("seed", "data", "sources", "compartment", "init_from", "model", "process")
OF_TEXT = ("codec", "prompts")  # of a model of latents and prompts besides


class Cdm:
  """A run's directory, opened under its config."""

  def __init__(
    self,
    config: ConfigDict,
    workdir: pathlib.Path,
    stopped: Callable[[], bool] = lambda: False,
  ):
    self.config, self.workdir = config, pathlib.Path(workdir)
    self.setup = build.build(config)
    fields = dict(config.sources)
    self.lanes, self.slices, _ = (fields.pop(name) for name in ("lanes", "slices", "mesh"))
    self.absent = tuple(fields.pop("absent"))
    self.split = sources.Split(**fields)
    _check_step(self.setup)
    kind = adapters.make(**config.compartment)
    self.compartment = compartment.make(kind, self.setup.net, self.setup.process)
    self.router = routers.make(**config.router)
    self.modes = {name: mode_of(name, config.compose) for name in config.compose.modes}
    self.ledger, self.keys = Ledger(self.workdir), Keys(self.workdir)
    self.stopped = stopped

  def open(self) -> None:
    """Claims the directory; of a new one writes who has which records."""
    processes.from_first(self._open)

  def _open(self) -> None:
    begun = (self.workdir / sources.FILE).exists()
    if begun:
      self.settle()
    train.bind(self.workdir, self.config, lambda: self.keys.check(self.setup.train))
    if begun:
      return
    found = sources.split(self.setup.train, self.split, self.config.seed)
    for name in self.absent:
      errors.check_choice("source", name, sorted(set(found.values())))
    present = {name: source for name, source in found.items() if source not in self.absent}
    fields = json.loads(self.config.to_json())
    names = (*LEDGER_FIELDS, *(name for name in OF_TEXT if name in fields))
    self.ledger.append("start", **{name: fields[name] for name in names})
    self.assign(present, "sources")

  def clear(self, changed: Sequence[str]) -> list[pathlib.Path]:
    """Removes what the sources that change went into: values, samples, their parts of the router.

    What else may have seen a record goes too: damaged checkpoints, a proof that was stopped, and
    TensorBoard's files, which cannot be cut. Returns the removed parts, relative to the run.
    """
    aside = [f"shards/{name}/{kind}" for name in changed for kind in ("damaged", "tensorboard")]
    for folder in ("evals", "samples", "proof", *aside):
      shutil.rmtree(self.workdir / folder, ignore_errors=True)
    for name in FILES:
      (self.workdir / name).unlink(missing_ok=True)
    parts = sorted((self.workdir / "router").glob("*.npz"))
    gone = [path for path in parts if path.stem in changed or not self.router.independent]
    for path in gone:
      path.unlink()
    return [path.relative_to(self.workdir) for path in gone]

  def assign(self, named: dict[str, str], event: str, **facts: Any) -> None:
    """Says who has which records now, in files and in the ledger; commits to those that are new."""
    known = self.keys.of_ids(named)
    if new := [name for name in named if name not in known]:
      self.keys.add(sources.of_ids(self.setup.train, new))
      known = self.keys.of_ids(named)
    files = write_sources(self.workdir, {known[i].commitment: s for i, s in named.items()})
    self.ledger.append(event, files=files, records=len(named), **facts)

  def forget_latents(self, left: Collection[str]) -> None:
    """Removes from the cache what was encoded of the records that are not left."""
    codec, records = self.setup.codec, self.setup.train
    if isinstance(codec, latents.Codec):
      gone = [name for name in self.sources if name not in left]
      cache.forget(codec, sources.of_ids(records, gone), sources.of_ids(records, [*left]))

  def settle(self) -> None:
    """Destroys the keys of records that no source has any more, once the ledger says so."""
    present = sources.read(self.workdir / sources.FILE)
    gone = [name for name in self.keys.read() if name not in present]
    if gone:
      told = {line.get("commitment") for line in self.ledger.lines()}
      self.ledger.extend("deleted", ({"commitment": name} for name in gone if name not in told))
      self.keys.keep(present)

  @property
  def sources(self) -> dict[str, str]:
    """id -> source, as it stands now.

    Raises:
      ValueError: a source that no run names, or a record whose key is not there.
    """
    named, known = sources.read(self.workdir / sources.FILE), self.keys.read()
    if lost := len(named.keys() - known.keys()):
      raise ValueError(
        f"{self.keys.path} opens {len(named) - lost} of the {len(named)} commitments of "
        f"{sources.FILE}: keys of records that are still there were destroyed; put its copy back"
      )
    return {known[name].id: source for name, source in named.items()}

  def shards(self) -> dict[str, Shard]:
    """Every source's shard, by name."""
    return {name: self.shard(name, ids) for name, ids in sources.members(self.sources).items()}

  def shard(self, name: str, ids: Sequence[str]) -> Shard:
    digest = hashlib.sha256(f"{self.config.seed}/{name}".encode()).digest()
    return Shard(
      name=name,
      records=sources.of_ids(self.setup.train, ids),
      batch=self.config.train.batch,
      steps=self.config.train.steps,
      seed=int.from_bytes(digest[:4], "big") >> 1,
      slices=self.slices,
      conditional=bool(self.setup.net.classes),
      codec=self.setup.codec,
    )

  @functools.cached_property
  def backbone(self) -> Tree:
    """The weights that every source builds on; None where each starts at random."""
    return build.start_params(self.setup) if self.config.init_from else None

  def training(self, folder: pathlib.Path | None = None) -> Training:
    """The training of shards under RUN/shards, or in another folder with a ledger of its own."""
    return Training(
      self.setup,
      self.compartment,
      self.backbone,
      (folder or self.workdir) / "shards",
      Ledger(folder) if folder else self.ledger,
      self.keys.fingerprint,
      self.lanes,
      self.stopped,
    )

  def train(self) -> dict[str, State]:
    return self.training().run(self.shards().values())

  def model(self, states: dict[str, State]) -> Compartments:
    """The trained sources with their router, to be composed."""
    shards = self.shards()
    names = tuple(sorted(states))
    params = processes.local([states[name].ema or states[name].params for name in names])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    parts, told = self.route({name: shards[name].records for name in names})
    return Compartments(
      names,
      tuple(len(shards[name].records) for name in names),
      sharding.put_sources(self.setup.mesh, stacked, self.config.sources.mesh),
      parts,
      told,
    )

  def route(self, records: dict[str, data.Records]) -> tuple[Tree, np.ndarray | None]:
    """The router's stacked parts, and how many records of each condition the sources have.

    What is not kept under RUN/router is fitted and kept.
    """
    path = lambda name: self.workdir / "router" / f"{name}.npz"
    lost = lambda: [name for name in records if not path(name).exists()]
    missing = processes.from_first(lost)
    if missing and not self.router.independent:
      missing = list(records)
    if missing:
      mine = {name: records[name] for name in missing}
      backbone = processes.local(self.backbone)
      setup = self.setup
      fitted = self.router.fit(mine, setup.net, backbone, setup.process, setup.codec)
      told = {name: conditions.part(setup.net, records[name]) for name in mine}
      fitted = {name: {**part, **told[name]} for name, part in fitted.items()}
      processes.from_first(lambda: self._keep({path(name): part for name, part in fitted.items()}))
    return stacked(self.setup.net, [read_part(path(name)) for name in sorted(records)])

  def _keep(self, fitted: dict[pathlib.Path, dict[str, Any]]) -> None:
    """Writes parts of the router, and their line."""
    for path, part in fitted.items():
      path.parent.mkdir(exist_ok=True)
      buffer = io.BytesIO()
      np.savez(buffer, **part)
      writer.replace(path, buffer.getvalue())
    seen = self.seen([path.stem for path in fitted])
    self.ledger.append("router", files=fitted, seen=seen)

  def seen(self, names: Sequence[str]) -> dict[str, str]:
    """{what weighs the sources: what it has seen}, in words."""
    told = names if self.setup.net.classes else ()
    conditions_of = {f"conditions of {name}": f"{name} alone" for name in told}
    return {**self.router.seen(names), **conditions_of}

  def eps_fn(self, model: Compartments, mode: Mode, place: Place = lambda tree: tree) -> EpsFn:
    """The composition of those sources, `place`d first, guided as config.eval says."""
    model = place(model)
    apply, router = self.applied(), self.routed()
    guidance = self.config.eval.guidance
    return compose.compose(apply, model, router, self.setup.process, mode, guidance)

  def routed(self) -> routers.Weigher:
    """The router on what it stands on, a pytree."""
    return self.router.on(self.setup.net, self.backbone, self.setup.codec)

  def applied(self) -> Callable[..., jax.Array]:
    """(params, x, t, c) -> eps of a source on the backbone, a pytree."""
    return jax.tree_util.Partial(self.compartment.apply, self.backbone)

  def note_cost(self, phase: str, model: Compartments, mode: Mode) -> None:
    """Adds to a phase's values the evaluations of a network a sample took, and all parameters."""
    path, options = self.workdir / "evals" / f"{phase}.json", self.config.eval
    steps = options.steps * (2 if options.guidance else 1)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    frozen = 0 if self.config.compartment.name == "full" else size(self.backbone)
    identity = f"sampler={options.sampler} steps={options.steps}"
    values = {
      "network_evaluations": steps * mode.networks(len(model.names)),
      "parameters": frozen + size(model.params),
    }
    entries = {k: {"value": v, "ci95": None, "identity": identity} for k, v in values.items()}
    writer.replace(path, json.dumps(json.loads(path.read_text()) | entries, indent=2) + "\n")

  def phases(self, names: Sequence[str]) -> list[tuple[str, Mode, Sequence[str]]]:
    """(phase, mode, sources) of every evaluation: each mode, and each source alone."""
    allowed = tuple(self.config.compose.subset) or tuple(names)
    out: list[tuple[str, Mode, Sequence[str]]]
    out = [(phase, mode, allowed) for phase, mode in self.modes.items()]
    if self.config.compose.alone:
      out += [(f"alone_{name}", Mode("naive"), (name,)) for name in allowed]
    return out


def read_part(path: pathlib.Path) -> dict[str, np.ndarray]:
  """What was fitted of a source."""
  with np.load(path) as npz:
    return {key: npz[key] for key in npz.files}


def stacked(net: Any, parts: Sequence[dict[str, np.ndarray]]) -> tuple[Tree, np.ndarray | None]:
  """The parts of the router side by side, and their counts of the network's conditions."""
  of_router = [{k: v for k, v in part.items() if k not in conditions.KEYS} for part in parts]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *of_router), conditions.counts(net, parts)


def write_sources(run: pathlib.Path, named: dict[str, str]) -> list[pathlib.Path]:
  """Writes commitment -> source: the map, and every shard's list; returns these files."""
  files = [run / sources.FILE]
  sources.write(files[0], named)
  for name, commitments in sources.members(named).items():
    files.append(run / "shards" / name / "records.txt")
    files[-1].parent.mkdir(parents=True, exist_ok=True)
    writer.replace(files[-1], listed(commitments))
  return files


def _check_step(setup: build.Setup) -> None:
  """Raises ValueError where the config asks for another step than the one that sources take."""
  config = setup.config
  if not setup.trained.everything:
    raise ValueError(
      "config.trained is set, and what a source trains is config.compartment; leave "
      "config.trained.pattern empty and rank 0"
    )
  if setup.method.streams != ("x",):
    raise ValueError(
      f"method {config.method.name} reads streams {', '.join(setup.method.streams)}, and a source "
      "has its own records alone; use denoising"
    )
  if config.train.micro_batches > 1:
    raise ValueError(
      f"config.train.micro_batches is {config.train.micro_batches} and a source takes its batch "
      "at once; use 1, and a smaller config.train.batch or fewer config.sources.lanes"
    )


def mode_of(name: str, options: ConfigDict) -> Mode:
  """soft, naive, step, trajectory, or topK like top2; `options` is config.compose."""
  top = re.fullmatch(r"top(\d+)", name)
  fields = {"over": options.over, "block": options.block, "seed": options.seed}
  fields["rows"] = options.get("rows", 0)
  return Mode("topk", k=int(top[1]), **fields) if top else Mode(name, **fields)
