"""The evaluations of a run: samples made once from fixed noise, then every metric on them."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxunlearn import data, evals, pictures, sampling, sharding
from jaxunlearn.diffusion import EpsFn

STOPPED = 143  # the exit code after SIGTERM: nothing saved is lost, launch again to go on


class Stopped(SystemExit):
  """SIGTERM or SIGINT arrived; what was done is saved."""


def generate(setup: Any, eps_fn: EpsFn, n: int) -> np.ndarray:
  """n samples in batches over the mesh, from noise that depends on the evaluation seed alone."""
  options = setup.config.eval
  where = sharding.batch_sharding(setup.mesh)
  size = -(-options.batch // setup.mesh.size) * setup.mesh.size
  root = jax.random.key(options.seed)
  out = []
  for i in range(-(-n // size)):
    k_x, k_step = jax.random.split(jax.random.fold_in(root, i))
    x_T = sharding.put(jax.random.normal(k_x, (size, *setup.net.image_shape)), where)
    batch = sampling.sample(
      eps_fn, setup.process, k_step, x_T, sampler=options.sampler, steps=options.steps
    )
    out.append(np.asarray(batch))
  return np.concatenate(out)[:n]


class Evaluation:
  """The evaluations of one run: each phase is done once and kept in evals/PHASE.json."""

  def __init__(self, setup: Any, workdir: pathlib.Path, stopped: Callable[[], bool]):
    self._setup = setup
    self._workdir = workdir
    self._stopped = stopped
    for name in setup.config.eval.metrics:
      evals.metric(name)  # a wrong name fails before any work

  def once(self, phase: str, params: Any) -> None:
    """Evaluates under `phase` (before, after), or does nothing where that is already done."""
    path = self._workdir / "evals" / f"{phase}.json"
    if path.exists():
      return
    eps_fn = self._bind(params)
    task = self._task(eps_fn, self._setup.config.eval.samples)
    values: dict[str, evals.Value] = {}
    for name in tqdm(self._setup.config.eval.metrics, desc=f"evaluate {phase}"):
      if self._stopped():
        raise Stopped(STOPPED)
      values |= evals.metric(name)(eps_fn, task)
    pictures.write_phase(self._workdir / "samples", phase, task.samples, task.target)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({k: v._asdict() for k, v in values.items()}, indent=2) + "\n")
    temporary.replace(path)

  def probe(self, step: int, params: Any) -> dict[str, float]:
    """A small evaluation for the curves over steps."""
    eps_fn = self._bind(params)
    task = self._task(eps_fn, self._setup.config.eval.probe_samples)
    out: dict[str, float] = {}
    for name in self._setup.config.eval.probe_metrics:
      out |= {f"probe_{k}": v.value for k, v in evals.metric(name)(eps_fn, task).items()}
    return out

  def _bind(self, params: Any) -> EpsFn:
    return jax.tree_util.Partial(self._setup.net.apply, params)

  def _task(self, eps_fn: EpsFn, n: int) -> evals.Task:
    setup, options = self._setup, self._setup.config.eval
    target = np.unique(setup.train.image[setup.forget], axis=0)
    return evals.Task(
      process=setup.process,
      target=data.to_model(target),
      heldout=data.to_model(setup.heldout.image),
      heldout_label=setup.heldout.label,
      classes=setup.train.classes,
      samples=generate(setup, eps_fn, n),
      identity=evals.identity(
        sampler=options.sampler,
        steps=options.steps,
        n=n,
        guidance="none",
        weights="ema" if setup.config.ema else "raw",
        seed=options.seed,
      ),
      options=options,
      rng=jax.random.key(options.seed),
    )
