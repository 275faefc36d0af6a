"""The evaluations of a run: samples made once from fixed noise, then every metric on them.

Both are kept as they come (samples/PHASE.f32, evals/PHASE.partial.json), so that an evaluation
which was stopped or killed goes on where it was.
"""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxunlearn import checkpoint, data, errors, evals, streams
from jaxunlearn.diffusion import EpsFn, guidance, sampling
from jaxunlearn.evals import classifiers
from jaxunlearn.mesh import processes, sharding
from jaxunlearn.reports import pictures, verdicts, writer

Place = Callable[[Any], Any]  # parameters to where they are used
STOPPED = 143  # the exit code after SIGTERM: nothing saved is lost, launch again to go on
COMPILING = "compile"  # what a bar says until its first step, or first samples, are there
REFERENCES = ("heldout", "retain", "train")


class Stopped(SystemExit):
  """SIGTERM or SIGINT arrived; what was done is saved."""


def batch_size(setup: Any) -> int:
  """Samples made at a time: config.eval.batch, rounded up to a multiple of the devices."""
  return -(-setup.config.eval.batch // setup.mesh.size) * setup.mesh.size


def plan(setup: Any, asked: int, n: int) -> np.ndarray | None:
  """The conditions of `asked` samples of what is to be forgotten, then n of what is kept, in turn.

  None for an unconditional model, whose samples are n.
  """
  if not setup.net.classes:
    return None
  every = streams.every(setup.net.classes)
  mine = setup.concept.matches(every) if setup.concept else np.zeros(len(every), bool)
  turn = lambda rows, count: rows[np.arange(count) % len(rows)] if len(rows) else rows
  c = np.concatenate([turn(every[mine], asked), turn(every[~mine], n)])
  return c[:, 0] if c.shape[1] == 1 else c


def answers(classes: tuple[int, ...], seeds: Sequence[int]) -> np.ndarray:
  """Every combination of conditions once a seed, the first varying fastest: objects in a style."""
  grid = np.meshgrid(*map(np.arange, classes[::-1]), indexing="ij")[::-1]
  every = np.stack(grid, -1).reshape(-1, len(classes)).astype(np.int32)
  c = np.tile(every, (len(seeds), 1))
  return c[:, 0] if c.shape[1] == 1 else c


def noise(setup: Any, i: int, size: int, seeds: Sequence[int] = ()) -> jax.Array:
  """What the i-th batch starts from.

  With seeds that of a sample depends on its seed and on its place among those of it.
  """
  options, shape = setup.config.eval, setup.net.image_shape
  if not seeds:
    k_x, _ = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), i))
    return jax.random.normal(k_x, (size, *shape))
  each = math.prod(setup.net.classes)
  turn = np.arange(i * size, (i + 1) * size) % (each * len(seeds))
  one = lambda seed, place: jax.random.normal(
    jax.random.fold_in(jax.random.key(seed), place), shape
  )
  return jax.vmap(one)(np.array(seeds, np.uint32)[turn // each], turn % each)


def saved(images: np.ndarray, quality: int) -> np.ndarray:
  """The images in [-1, 1] after JPEG of that quality; as they are for 0."""
  if not quality:
    return images
  made = []
  for pixels in data.to_pixels(images):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    made.append(np.asarray(Image.open(file)))
  return data.to_model(np.stack(made))


def generate(
  setup: Any,
  eps_fn: EpsFn,
  i: int,
  c: np.ndarray | None = None,
  seeds: Sequence[int] = (),
) -> np.ndarray:
  """The i-th batch of pictures, from noise that depends on i and the evaluation seed, or seeds.

  c are the conditions of all samples; after the last they start again.
  """
  images = setup.codec.decode(made(setup, eps_fn, i, c, seeds))
  return saved(images, setup.config.eval.jpeg)


def made(
  setup: Any,
  eps_fn: EpsFn,
  i: int,
  c: np.ndarray | None = None,
  seeds: Sequence[int] = (),
) -> np.ndarray:
  """The same as the network sees them: pictures, or their latents."""
  options, size = setup.config.eval, batch_size(setup)
  where = sharding.batch_sharding(setup.mesh)
  if c is not None:
    c = sharding.put(c[np.arange(i * size, (i + 1) * size) % len(c)], where)
  _, k_step = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), i))
  x_T = noise(setup, i, size, seeds)
  batch = sampling.sample(
    eps_fn,
    setup.process,
    k_step,
    sharding.put(x_T, where),
    c,
    sampler=options.sampler,
    steps=options.steps,
    options=setup.sampler,
  )
  return np.asarray(processes.local(batch))


class Evaluation:
  """The evaluations of one run: each phase is done once and kept in evals/PHASE.json."""

  def __init__(self, setup: Any, workdir: pathlib.Path, stopped: Callable[[], bool]):
    self._setup = setup
    self._workdir = workdir
    self._stopped = stopped
    options = setup.config.eval
    errors.check_choice("reference set", options.reference, REFERENCES)
    sampling.check(setup.process, options.sampler, options.steps, setup.sampler)
    for name in (*options.metrics, *options.probe_metrics):
      evals.check(name, options)  # fails before any work
    if options.features:
      classifiers.check(options)

  def once(
    self,
    phase: str,
    params: Any,
    frozen: Any = checkpoint.NOTHING,
    start: Callable[[], tuple[Any, Any]] | None = None,
  ) -> None:
    """Evaluates the network under `phase` (before, after), unless that is already done.

    start() gives the parameters that the run began with, trained and frozen, for metrics that
    compare both.
    """
    before = start and (lambda: processes.local(self._bind(*start())))
    self.measure(phase, lambda place: self._bind(place(params), place(frozen)), before)

  def measure(
    self,
    phase: str,
    make: Callable[[Place], EpsFn],
    before: Callable[[], EpsFn] | None = None,
  ) -> None:
    """Evaluates what `make` gives under `phase`, or does nothing where that is already done.

    make(place) is the predictor of the parameters `place(params)`: first of those on the mesh, for
    the samples, then of whole ones, for the metrics, which every process computes for itself.
    """
    path = self._workdir / "evals" / f"{phase}.json"
    if processes.from_first(path.exists):
      return
    eps_fn = make(lambda params: params)
    stored = self._workdir / "samples" / f"{phase}.f32"
    options, classes = self._setup.config.eval, self._setup.net.classes
    c = plan(self._setup, options.asked, options.samples)
    c = answers(classes, options.seeds) if classes and options.seeds else c
    task = self._task(self._samples(eps_fn, stored, c), c)
    task = dataclasses.replace(task, before=before)
    partial = path.with_suffix(".partial.json")
    done = processes.from_first(lambda: json.loads(partial.read_text()) if partial.exists() else {})
    eps_fn = processes.local(make(processes.local))
    names = self._setup.config.eval.metrics
    for name in tqdm(names, desc=f"evaluate {phase}", disable=not processes.first()):
      self._stop_here()
      if name not in done:
        done[name] = {k: v._asdict() for k, v in evals.metric(name)(eps_fn, task).items()}
        _write_json(partial, done)
    self._write_pictures(phase, task)
    self._write_features(phase, task)
    _write_json(path, {k: v for values in done.values() for k, v in values.items()})
    if processes.first():
      partial.unlink(missing_ok=True)
      stored.unlink()

  def probe(self, step: int, params: Any, frozen: Any = checkpoint.NOTHING) -> dict[str, float]:
    """A small evaluation for the curves over steps; of an attack its newest samples are shown."""
    options, eps_fn = self._setup.config.eval, self._bind(params, frozen)
    n = options.probe_samples
    c = plan(self._setup, n, 0 if self._setup.concept else n)
    count = -(-n // batch_size(self._setup))
    samples = np.concatenate([generate(self._setup, eps_fn, i, c) for i in range(count)])
    task = self._task(samples[:n], c)
    eps_fn = processes.local(eps_fn)
    if self._setup.config.attack and c is not None and processes.first():
      folder = self._workdir / "samples"
      pictures.write_conditions(folder, "probe", task.samples, c, task.of_concept)
    out: dict[str, float] = {}
    for name in options.probe_metrics:
      out |= {f"probe_{k}": v.value for k, v in evals.metric(name)(eps_fn, task).items()}
    return out

  def _write_pictures(self, phase: str, task: evals.Task) -> None:
    if not processes.first():
      return
    folder = self._workdir / "samples"
    if task.c is None:
      pictures.write_phase(folder, phase, task.samples, task.target)
      return
    pictures.write_conditions(folder, phase, task.samples, task.c, task.of_concept)
    if len(task.target) and task.split:
      few = np.asarray(task.samples[: pictures.SHOWN // 2])
      partners = pictures.beside(few, (task.split.kept, task.split.deleted))
      pictures.write_pairs(folder, phase, few, partners, task.target)
    if self._setup.config.eval.keep:
      arrays = io.BytesIO()
      np.savez_compressed(arrays, image=data.to_pixels(task.samples), c=task.c)
      writer.replace(self._workdir / streams.SAMPLES, arrays.getvalue())

  def _write_features(self, phase: str, task: evals.Task) -> None:
    if not self._setup.config.eval.features or not processes.first():
      return
    column = task.concept.column if task.concept else 0
    classifier = classifiers.of_column(task.options, column)
    features = classifier.features(task.samples)
    verdicts.write(self._workdir, phase, verdicts.Features(features, classifier.identity))

  def _samples(self, eps_fn: EpsFn, path: pathlib.Path, c: np.ndarray | None) -> np.ndarray:
    """The samples of an evaluation, in a file that a stopped one goes on filling."""
    size = batch_size(self._setup)
    n = self._setup.config.eval.samples if c is None else len(c)
    shape = (size, *self._setup.codec.shape(self._setup.net.image_shape))
    path.parent.mkdir(parents=True, exist_ok=True)
    made = processes.from_first(lambda: _whole_parts(path, 4 * math.prod(shape)))
    quiet = n <= size or not processes.first()
    bar = tqdm(range(made, -(-n // size)), desc=COMPILING, disable=quiet)
    with path.open("ab") as file:
      for i in bar:
        self._stop_here()
        batch = generate(self._setup, eps_fn, i, c, self._setup.config.eval.seeds)
        bar.set_description("sample", refresh=False)
        if processes.first():
          file.write(batch.tobytes())
          file.flush()
    processes.wait("samples")
    return np.memmap(path, np.float32, "r").reshape(-1, *shape[1:])[:n]

  def _stop_here(self) -> None:
    if self._stopped():
      raise Stopped(STOPPED)

  def _bind(self, params: Any, frozen: Any) -> EpsFn:
    predictor = self._setup.predictor(frozen)
    if self._setup.trained.everything:
      eps_fn = jax.tree_util.Partial(predictor.bound(frozen), params)
    else:
      eps_fn = jax.tree_util.Partial(predictor, frozen, params)
    spread = sharding.spread(eps_fn, self._setup.mesh)
    return guidance.guided(spread, self._setup.config.eval.guidance)

  def _task(self, samples: np.ndarray, c: np.ndarray | None) -> evals.Task:
    setup, options = self._setup, self._setup.config.eval
    concept, heldout = setup.concept, setup.heldout
    like_deleted = heldout
    single = np.flatnonzero(setup.forget) if concept is None else np.empty(0, int)
    target = np.unique(setup.train.image[single], axis=0)
    if concept:
      of_it = concept.matches(heldout.conditions)
      heldout, like_deleted = (heldout.take(np.flatnonzero(m)) for m in (~of_it, of_it))
    kept = setup.train.take(np.flatnonzero(~setup.forget))
    references = {"heldout": heldout, "retain": kept, "train": setup.train}
    return evals.Task(
      process=setup.process,
      target=data.to_model(target),
      reference=references[options.reference],
      classes=setup.train.classes,
      samples=samples,
      identity=evals.identity(
        sampler=options.sampler,
        steps=options.steps,
        **setup.sampler.facts(),
        n=len(samples),
        guidance=f"{options.guidance:g}" if setup.net.classes else "none",
        weights="ema" if setup.config.ema else "raw",
        seed=options.seed,
        **({"seeds": ",".join(map(str, options.seeds))} if options.seeds else {}),
        **({"jpeg": options.jpeg} if options.jpeg else {}),
      ),
      options=options,
      rng=jax.random.key(options.seed),
      c=c,
      concept=concept,
      vocabulary=setup.train.vocabulary,
      template=setup.config.prompts.template if "prompts" in setup.config else "",
      sampler=setup.sampler,
      split=evals.Split(
        kept=kept,
        deleted=setup.train.take(np.flatnonzero(setup.forget)),
        like_kept=heldout,
        like_deleted=like_deleted,
      ),
      codec=setup.codec,
    )


def _whole_parts(path: pathlib.Path, size: int) -> int:
  """How many parts of so many bytes a file has; what follows the last whole one is cut off."""
  with path.open("ab") as file:
    count = file.tell() // size
    file.truncate(count * size)
  return count


def _write_json(path: pathlib.Path, content: Any) -> None:
  if not processes.first():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  writer.replace(path, json.dumps(content, indent=2) + "\n")
