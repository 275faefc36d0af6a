"""The training loop of every noise predictor: restore, update, log, checkpoint, evaluate.

Pretraining, retraining, unlearning and attacks are all runs of this loop; they differ in their
streams, their method and where they start from. Every random number comes from (seed, step) and
the data position from the step, so that a run which was killed resumes bit for bit.
"""

import contextlib
import json
import pathlib
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxunlearn import build, checkpoint, fields, methods
from jaxunlearn.checkpoint import State
from jaxunlearn.data import roll
from jaxunlearn.evaluation import COMPILING, STOPPED, Evaluation, Stopped
from jaxunlearn.mesh import processes, profiling
from jaxunlearn.reports import lineage, report, subject, timing
from jaxunlearn.reports.writer import Writer, replace
from jaxunlearn.step import flops, make_update

Tree = Any

# What a launch makes in its directory; the last line is of a run of sources.
OWN = (
  *("config.json", "records.txt", "evals", "samples", "metrics.jsonl", "timing.jsonl"),
  "lineage.json",
  *("tensorboard", "checkpoints", "profile", "features"),
  *("sources.csv", "keys.txt", "ledger.jsonl", "shards", "router"),
)
NAMED = 4  # fields that differ of which an error tells
IDLE = 10  # steps at the start of a run of which one has to forget something
_ADVICE = "the last good checkpoint is kept. Lower config.optimizer.learning_rate, or stop earlier"


class Diverged(RuntimeError):
  """A loss or gradient became NaN or infinite."""


def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains from the newest checkpoint (or the start) to the last step; returns results.json.

  Raises:
    ValueError: bad input, before any work; or the first IDLE steps forgot nothing at all.
    Diverged: a NaN or infinity; the last good checkpoint is kept.
    Damaged: every checkpoint of the run is damaged.
    Stopped: a signal; the state is saved.
  """
  setup = build.build(config)
  workdir = pathlib.Path(workdir)
  with processes.stop_signal() as stopped, contextlib.ExitStack() as stack:
    stack.enter_context(unbound_if_refused(workdir))
    params = build.start_params(setup)
    evaluation = Evaluation(setup, workdir, stopped)
    processes.from_first(lambda: claim(workdir, config, setup.entries()))
    _say(opening(setup, _newest(workdir)))
    if config.eval.before:
      evaluation.once("before", *setup.split(params))
    saves = checkpoint.Checkpoints(workdir / "checkpoints", config.train.keep)
    stack.callback(saves.close)
    state = build.make_state(setup, params)
    origin = jax.tree.map(jnp.copy, state.params) if config.attack else None
    del params
    state = saves.restore(state) or state
    writer = stack.enter_context(Writer(workdir / "metrics.jsonl", int(state.step)))
    state = train(setup, state, saves, writer, stopped, evaluation.probe, origin)
    save_finite(saves, state)
    saves.wait()
    if config.eval.after:
      start = (lambda: setup.split(build.start_params(setup))) if config.init_from else None
      evaluation.once("after", state.ema or state.params, state.frozen, start)
  return processes.from_first(lambda: report.write(workdir))


def opening(setup: build.Setup, done: int = 0) -> str:
  """One line of what a run will do."""
  devices = setup.mesh.devices.ravel().tolist()
  return subject.opening(setup.config.to_dict(), int(setup.forget.sum()), devices, done)


def _say(text: str) -> None:
  if processes.first():
    print(text, flush=True)


@contextlib.contextmanager
def unbound_if_refused(workdir: pathlib.Path) -> Iterator[None]:
  """A launch that is refused before its first checkpoint leaves nothing that binds the next one.

  What stood in the directory before it stays.
  """
  made = not workdir.exists()
  new = [workdir / name for name in OWN if not (workdir / name).exists()]
  try:
    yield
  except ValueError:
    if processes.first() and workdir.is_dir() and not _newest(workdir):
      for path in new:
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
      with contextlib.suppress(OSError):  # something else is in it
        if made:
          workdir.rmdir()
    raise


def _newest(workdir: pathlib.Path) -> int:
  """The step of the newest checkpoint, whole or not; 0 for none."""
  folders = (workdir, *workdir.glob("shards/*"))
  names = [path.name for folder in folders for path in folder.glob("checkpoints/*")]
  return max([int(name) for name in names if name.isdigit()], default=0)


def train(
  setup: build.Setup,
  state: State,
  saves: checkpoint.Checkpoints,
  writer: Writer,
  stopped: Callable[[], bool],
  probe: Callable[[int, Tree, Tree], dict[str, float]],
  origin: Tree | None = None,
) -> State:
  """The loop from the state's step to config.train.steps; probes log the distance to `origin`."""
  config = setup.config.train
  pending: list[tuple[int, Tree]] = []  # metrics still on the device
  first = int(state.step)
  forgets = first > 0
  folder = saves.directory.parent / "profile"
  update = profiling.traced(make_update(setup, state), first, setup.config.profile, folder)
  batches = setup.batches(first, config.steps)
  bar = tqdm(
    batches, initial=first, total=config.steps, desc=COMPILING, disable=not processes.first()
  )
  peak = timing.peak(setup.mesh.devices.ravel().tolist(), setup.config.model.get("dtype"))
  most = setup.method.forwards + 2 * setup.method.backwards  # passes of a step
  clock = timing.Clock(saves.directory.parent / "timing.jsonl", config.batch, peak)
  for step, batch in enumerate(bar, start=first + 1):
    state, metrics = update(state, batch)
    pending.append((step, metrics))
    if step == first + 1:
      jax.block_until_ready(metrics)
      whole = flops(setup, state, batch)
      bar.set_description("train")
      clock.start(step)
    stop = stopped()  # read once a step, so that what is saved has been logged
    save = stop or step % config.checkpoint_every == 0
    probing = setup.config.eval.every and step % setup.config.eval.every == 0
    if save or probing or step % config.log_every == 0 or step == config.steps:
      logged = _flush(pending, writer)
      losses = {k: f"{v:.4g}" for k, v in logged[-1].items() if k.startswith("loss")}
      done = float(np.mean([metrics.get("passes", most) for metrics in logged])) / most
      bar.set_postfix(losses | clock.lap(step, whole * done))
      forgets = forgets or not all(is_idle(setup.method, metrics) for metrics in logged)
      if not forgets and step >= min(IDLE, config.steps):
        raise ValueError(
          f"the gradient of what is to be forgotten was exactly 0 in each of the first {step} "
          f"steps: method {setup.config.method.name} does nothing here; take other config.streams "
          "or another method"
        )
    if probing:
      writer.write_scalars(step, probe(step, state.ema or state.params, state.frozen))
      if origin is not None:
        writer.write_scalars(step, {"distance": float(_distance(state.params, origin))})
    if save:
      save_finite(saves, state)
    if save or probing:
      clock.start(step)
    if stop:
      saves.wait()
      logging.warning("stopped by a signal after step %d; launch again to go on", step)
      raise Stopped(STOPPED)
  return state


def save_finite(saves: checkpoint.Checkpoints, state: State) -> None:
  """Starts a checkpoint; raises Diverged where the state is not finite."""
  if not _finite((state.params, state.ema, state.opt)):
    raise Diverged(
      f"the parameters or the optimiser's state are not finite after step {int(state.step)}; "
      f"{_ADVICE}"
    )
  saves.save(state)


@jax.jit
def _distance(params: Tree, origin: Tree) -> jax.Array:
  """||theta_s - theta_0||, how far an attack has travelled."""
  return optax.tree.norm(jax.tree.map(jnp.subtract, params, origin))


@jax.jit
def _finite(tree: Tree) -> jax.Array:
  return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def is_idle(method: methods.Objective, metrics: Mapping[str, float]) -> bool:
  """Whether a step forgot nothing: it moved nothing, or every loss of what goes was exactly 0."""
  losses = [metrics[f"loss_{term}"] for term in method.terms if term != "x"]
  return metrics["grad_norm"] == 0 or (bool(losses) and not any(losses))


def _flush(pending: list[tuple[int, Tree]], writer: Writer) -> list[dict[str, float]]:
  """Writes the metrics so far, of a step each; raises Diverged at the first that is not finite."""
  logged = []
  for step, metrics in pending:
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = sorted(name for name, value in scalars.items() if not np.isfinite(value))
    writer.write_scalars(step, scalars)
    logged.append(scalars)
    if bad:
      raise Diverged(f"{bad[0]} is {scalars[bad[0]]} at step {step}; {_ADVICE}")
  pending.clear()
  return logged


def claim(
  workdir: pathlib.Path, config: ConfigDict, records: Mapping[roll.Key, roll.Entry]
) -> None:
  """Makes the working directory; it belongs to one config and to the records it began with."""
  check = lambda: roll.check(workdir, records)
  bind(workdir, config, check, {roll.FILE: roll.write(records)})


def bind(
  workdir: pathlib.Path,
  config: ConfigDict,
  check: Callable[[], None],
  files: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
  """Makes the working directory of that config; of one that is there, `check` may refuse it.

  Args:
    files: name -> text of what else is written with config.json.
  """
  path, text = workdir / "config.json", config.to_json(indent=2, sort_keys=True) + "\n"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != text:
      new = json.loads(text)
      differ = fields.differences(fields.with_younger(read_config(path), new), new)
      if binding := [line for line in differ if not line.startswith(("mesh.", "profile "))]:
        raise ValueError(
          f"{workdir} holds a run of another config (differs in: {_some(binding)}); "
          "use another --workdir, or delete this one; to train that run further, use another "
          f"--workdir with --config.init_from={workdir}"
        )
    if path.exists():
      check()
    for name, content in {path.name: text, **files}.items():
      replace(workdir / name, content)
    lineage.begin(workdir, json.loads(text))
  except OSError as error:
    raise ValueError(f"cannot write to {workdir} ({error}); use another --workdir") from error


def read_config(path: pathlib.Path) -> dict[str, Any]:
  """config.json of a run; raises ValueError where it is none any more."""
  with contextlib.suppress(ValueError):
    if isinstance(found := json.loads(path.read_text()), dict):
      return found
  raise ValueError(f"{path} is damaged; use another --workdir, or delete this one")


def _some(lines: Sequence[str]) -> str:
  more = f", and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
  return ", ".join(lines[:NAMED]) + more
