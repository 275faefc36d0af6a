"""The evaluations of a run: samples made once from fixed noise, then every metric on them.

Both are kept as they come (samples/PHASE.f32, evals/PHASE.partial.json), so that an evaluation
which was stopped or killed goes on where it was.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxunlearn import data, errors, evals, pictures, sampling, sharding, writer
from jaxunlearn.diffusion import EpsFn

STOPPED = 143  # the exit code after SIGTERM: nothing saved is lost, launch again to go on
REFERENCES = ("heldout", "retain", "train")


class Stopped(SystemExit):
  """SIGTERM or SIGINT arrived; what was done is saved."""


def batch_size(setup: Any) -> int:
  """Samples made at a time: config.eval.batch, rounded up to a multiple of the devices."""
  return -(-setup.config.eval.batch // setup.mesh.size) * setup.mesh.size


def generate(setup: Any, eps_fn: EpsFn, i: int) -> np.ndarray:
  """The i-th batch of samples, from noise that depends on i and the evaluation seed alone."""
  options, size = setup.config.eval, batch_size(setup)
  k_x, k_step = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), i))
  x_T = jax.random.normal(k_x, (size, *setup.net.image_shape))
  batch = sampling.sample(
    eps_fn,
    setup.process,
    k_step,
    sharding.put(x_T, sharding.batch_sharding(setup.mesh)),
    sampler=options.sampler,
    steps=options.steps,
  )
  return np.asarray(batch)


class Evaluation:
  """The evaluations of one run: each phase is done once and kept in evals/PHASE.json."""

  def __init__(self, setup: Any, workdir: pathlib.Path, stopped: Callable[[], bool]):
    self._setup = setup
    self._workdir = workdir
    self._stopped = stopped
    options = setup.config.eval
    errors.check_choice("reference set", options.reference, REFERENCES)
    for name in (*options.metrics, *options.probe_metrics):
      evals.check(name, options)  # fails before any work

  def once(self, phase: str, params: Any) -> None:
    """Evaluates under `phase` (before, after), or does nothing where that is already done."""
    path = self._workdir / "evals" / f"{phase}.json"
    if path.exists():
      return
    eps_fn = self._bind(params)
    stored = self._workdir / "samples" / f"{phase}.f32"
    task = self._task(self._samples(eps_fn, stored))
    partial = path.with_suffix(".partial.json")
    done = json.loads(partial.read_text()) if partial.exists() else {}
    for name in tqdm(self._setup.config.eval.metrics, desc=f"evaluate {phase}"):
      self._stop_here()
      if name not in done:
        done[name] = {k: v._asdict() for k, v in evals.metric(name)(eps_fn, task).items()}
        _write_json(partial, done)
    pictures.write_phase(self._workdir / "samples", phase, task.samples, task.target)
    _write_json(path, {k: v for values in done.values() for k, v in values.items()})
    partial.unlink(missing_ok=True)
    stored.unlink()

  def probe(self, step: int, params: Any) -> dict[str, float]:
    """A small evaluation for the curves over steps."""
    options, eps_fn = self._setup.config.eval, self._bind(params)
    count = -(-options.probe_samples // batch_size(self._setup))
    samples = np.concatenate([generate(self._setup, eps_fn, i) for i in range(count)])
    task = self._task(samples[: options.probe_samples])
    out: dict[str, float] = {}
    for name in options.probe_metrics:
      out |= {f"probe_{k}": v.value for k, v in evals.metric(name)(eps_fn, task).items()}
    return out

  def _samples(self, eps_fn: EpsFn, path: pathlib.Path) -> np.ndarray:
    """config.eval.samples samples, in a file that a stopped evaluation goes on filling."""
    n, size = self._setup.config.eval.samples, batch_size(self._setup)
    shape = (size, *self._setup.net.image_shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
      made = file.tell() // (4 * math.prod(shape))
      file.truncate(made * 4 * math.prod(shape))
      for i in tqdm(range(made, -(-n // size)), desc="sample", disable=n <= size):
        self._stop_here()
        file.write(generate(self._setup, eps_fn, i).tobytes())
        file.flush()
    return np.memmap(path, np.float32, "r").reshape(-1, *shape[1:])[:n]

  def _stop_here(self) -> None:
    if self._stopped():
      raise Stopped(STOPPED)

  def _bind(self, params: Any) -> EpsFn:
    return jax.tree_util.Partial(self._setup.net.apply, params)

  def _task(self, samples: np.ndarray) -> evals.Task:
    setup, options = self._setup, self._setup.config.eval
    target = np.unique(setup.train.image[np.flatnonzero(setup.forget)], axis=0)
    references = {
      "heldout": setup.heldout,
      "retain": setup.train.take(np.flatnonzero(~setup.forget)),
      "train": setup.train,
    }
    return evals.Task(
      process=setup.process,
      target=data.to_model(target),
      reference=references[options.reference],
      classes=setup.train.classes,
      samples=samples,
      identity=evals.identity(
        sampler=options.sampler,
        steps=options.steps,
        n=len(samples),
        guidance="none",
        weights="ema" if setup.config.ema else "raw",
        seed=options.seed,
      ),
      options=options,
      rng=jax.random.key(options.seed),
    )


def _write_json(path: pathlib.Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  writer.replace(path, json.dumps(content, indent=2) + "\n")
