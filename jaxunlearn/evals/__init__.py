"""Metrics: one module a metric, each a function of a noise predictor.

    evaluate(eps_fn, task) -> {name: Value}

A `Value` carries its identity: two values are comparable only if their identities are equal.
To add a metric write one file here, or a package of your own (docs/plugins.md), and name it in
`config.eval.metrics`; the contract test `tests/evals_test.py` runs over every module found.

An eps_fn that is a `jax.tree_util.Partial` is a pytree: it passes into jitted functions as an
argument, so that one compiled sampler serves every checkpoint of a model.
"""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import data, latents, prompts
from jaxunlearn.diffusion import Diffusion, EpsFn, sampling
from jaxunlearn.inputs import plugins

# Modules that are no metric.
HELPERS = (
  "attacks",
  "canvas",
  "classifiers",
  "distances",
  "frechet",
  "judge",
  "recipes",
  "restoration",
  "roc",
  "statistics",
  "three_sample",
  "witness",
)


class Value(NamedTuple):
  """One number, its 95% interval where the sample gives one, and what was measured how."""

  value: float
  ci95: tuple[float, float] | None
  identity: str


@dataclasses.dataclass(frozen=True)
class Options:
  """What metrics can be told, with the defaults of `config.eval`."""

  target_name: str = "target"
  target_radius: float = 10.0  # L2 in [0, 1] pixels within which a sample is the target
  reference: str = "heldout"  # or retain, train: the images that kept samples should be like
  classifier: str = "digits"  # of classes; evals/classifiers.py lists them
  style_classifier: str = ""  # of styles, where the data has them
  inject_t: int = 250
  inject_n: int = 16
  completion_t: int = 500  # how far completion noises pictures of the concept
  completion_n: int = 64  # pictures at most
  completion_steps: int = 50  # of DDIM, from T down
  cra: str = "kept"  # samples of kept_accuracy's cra; all: as UnlearnCanvas's script takes them
  inception_weights: str = ""  # a file; "": the published one, where it is cached
  fid_resize: str = "bilinear"  # as pytorch-fid; or clean, as clean-fid, or torchmetrics
  fid_batch: int = 32  # images in the network at a time
  sscd_weights: str = ""  # a file; "": the published one, where it is cached
  sscd_protocol: str = "siss"  # or retrack
  nll_probes: int = 8
  nll_protocol: str = "interpolated"  # or siss, as the release of SISS
  nll_tolerance: float = 1e-3  # of the steps of interpolated
  membership_attacks: tuple[str, ...] = ("pia", "secmi")  # modules of evals/attacks
  membership_kept: int = 500  # records at most, of those trained on and kept
  membership_deleted: int = 1000  # of those to be forgotten
  membership_heldout: int = 1000  # not trained on; with 999 the smallest p-value is .001
  prompt_noises: int = 4  # for each prompt, of text_noise and one_step
  prompt_steps: int = 50  # of DDIM, of text_noise
  memorised_by: tuple[str, ...] = ("radius",)  # or kmeans, sscd: evals/memorised.py
  memorised_file: str = ""  # the two clusters, a kmeans.npz that jaxunlearn.memorised wrote
  clip_iqa_weights: str = ""  # a .safetensors of OpenAI's RN50; "": the one in the cache
  clip_weights: str = ""  # of the CLIP score: a folder of transformers' CLIPModel
  memorised_sscd: float = 0.5  # the least cosine of SSCD's descriptors of a copy


class Split(NamedTuple):
  """The records of a run by what became of them, each beside held-out ones of the same kind."""

  kept: data.Records
  deleted: data.Records
  like_kept: data.Records  # held out
  like_deleted: data.Records  # held out


@dataclasses.dataclass(frozen=True)
class Task:
  """What a metric may look at besides the eps_fn. Images are float32 [N, H, W, C] in [-1, 1]."""

  process: Diffusion
  target: np.ndarray  # the distinct images to forget
  reference: data.Records  # images as the kept samples should be: held-out or retained ones
  classes: tuple[str, ...]
  samples: np.ndarray  # generated from `eps_fn`, the same noise for every model
  identity: str  # how `samples` were made
  options: Any  # config.eval, or `Options`
  rng: jax.Array
  c: np.ndarray | None = None  # the samples' conditions [N] or [N, n]; None: unconditional
  concept: data.Concept | None = None  # the class or style to forget
  vocabulary: tuple[tuple[str, ...], ...] = ()  # the names of each condition's values
  template: str = ""  # how a text-to-image model's prompts are made of the names
  sampler: sampling.Options = sampling.DEFAULT
  split: Split | None = None  # None: the records are not known
  before: Callable[[], EpsFn] | None = None  # the model before the run; None: there is none
  codec: latents.Pixels | latents.Codec = latents.PIXELS  # images <-> what `eps_fn` sees

  def key(self, metric: str) -> jax.Array:
    """The random key of a metric, its own."""
    return jax.random.fold_in(self.rng, zlib.crc32(metric.encode()))

  def prompt(self, row: np.ndarray) -> str:
    """What the conditions of a sample [n] are in words: its prompt, or their names."""
    names = [[own[value]] for own, value in zip(self.vocabulary, row.tolist(), strict=True)]
    if not self.template and len(names) > 1:
      return " ".join(name for (name,) in names)
    return prompts.prompts(names, self.template)[0]

  @functools.cached_property
  def is_target(self) -> np.ndarray:
    """[N] bool: the samples within `target_radius` of a target, L2 in pixels of [0, 1]."""
    nearest = np.array([self._distance(sample) for sample in self.samples])
    return nearest < self.options.target_radius

  def _distance(self, sample: np.ndarray) -> float:
    distances = [float(np.linalg.norm(sample - a)) / 2 for a in self.target]
    return min(distances, default=np.inf)

  @functools.cached_property
  def of_concept(self) -> np.ndarray:
    """[N] bool: the samples that were asked for what is to be forgotten."""
    if self.c is None or self.concept is None:
      return np.zeros(len(self.samples), bool)
    return self.concept.matches(self.c)

  @functools.cached_property
  def groups(self) -> dict[str, np.ndarray]:
    """The end of a value's name -> [N] bool, the samples that it is of.

    Of a concept to forget: "" those asked for it, "_kept" the others. Of single pictures: "" those
    of prompts that the pictures have, "_original" those of prompts that none has. None is empty.
    """
    every = np.ones(len(self.samples), bool)
    if self.c is None:
      parts = {"": every}
    elif self.concept is not None:
      parts = {"": self.of_concept, "_kept": ~self.of_concept}
    else:
      own = self._has_pictures if self.split else every
      parts = {"": own, "_original": ~own}
    return {name: mask for name, mask in parts.items() if mask.any()}

  @property
  def _has_pictures(self) -> np.ndarray:
    """[N] bool: the samples whose condition some record of the run has."""
    assert self.split is not None and self.c is not None
    parts = (self.split.kept, self.split.deleted)
    there = {tuple(row) for p in parts for row in p.conditions.reshape(len(p), -1).tolist()}
    return np.array([tuple(row) in there for row in self.c.reshape(len(self.c), -1).tolist()])

  @property
  def concept_name(self) -> str:
    """The class or style to forget; "" where there is none."""
    return self.vocabulary[self.concept.column][self.concept.value] if self.concept else ""

  @functools.cached_property
  def is_kept(self) -> np.ndarray:
    """[N] bool: the samples that quality is measured on: of kept conditions, and no target."""
    return ~(self.of_concept | self.is_target)

  @property
  def kept(self) -> np.ndarray:
    return self.samples if self.is_kept.all() else self.samples[self.is_kept]

  @property
  def target_identity(self) -> str:
    """Which images are to be forgotten: name, how many, hash of their pixels."""
    return f"target={self.options.target_name}:{fingerprint(self.target)}"

  @functools.cached_property
  def reference_identity(self) -> str:
    """Which images the samples are compared with: subset, how many, hash of their pixels."""
    digest = hashlib.sha256()
    for pixels in self.reference.chunks(256):
      digest.update(data.to_model(pixels).tobytes())
    return f"{self.options.reference}:{len(self.reference)}:{digest.hexdigest()[:8]}"

  @property
  def model_identity(self) -> str:
    """The part of `identity` that a metric of the model itself shares, without the samples'."""
    facts = ("guidance=", "weights=", "seed=")
    return " ".join(fact for fact in self.identity.split() if fact.startswith(facts))

  @property
  def subject_identity(self) -> str:
    """What is to be forgotten: a concept, or pictures."""
    if self.concept is not None:
      return f"concept={self.concept_name.replace(' ', '-')}"
    return self.target_identity

  @property
  def samples_identity(self) -> str:
    """How the samples were made, and which are left out as those to forget."""
    if self.concept is not None:
      return f"concept={self.concept_name.replace(' ', '-')} {self.identity}"
    return f"{self.target_identity} radius={self.options.target_radius:g} {self.identity}"


def identity(**facts: Any) -> str:
  """The identity of a metric's value: `key=value` pairs separated by spaces."""
  return " ".join(f"{key}={value}" for key, value in facts.items())


def fingerprint(images: np.ndarray) -> str:
  """`COUNT:HASH` of a set of images."""
  return f"{len(images)}:{hashlib.sha256(images.tobytes()).hexdigest()[:8]}"


def prompt_noise(task: Task, metric: str) -> jax.Array:
  """[n, ...] noises of the shape that the model sees, the same for every prompt."""
  seen = task.codec.seen(task.samples.shape[1:])
  return jax.random.normal(task.key(metric), (task.options.prompt_noises, *seen))


def prompt_identity(task: Task, prompts: int, **facts: Any) -> str:
  """The identity of a score of so many prompts."""
  own = identity(prompts=prompts, noises=task.options.prompt_noises, **facts)
  return f"{own} {task.subject_identity} {task.model_identity}"


CHOICES = plugins.Group(__name__, "metric", "evaluate", HELPERS)
names = CHOICES.names


def check(name: str, options: Any) -> None:
  """Raises ValueError where there is no such metric, or it lacks something, like a weights file."""
  getattr(CHOICES.module(name), "check", lambda options: None)(options)


def metric(name: str) -> Callable[[EpsFn, Task], dict[str, Value]]:
  return CHOICES.module(name).evaluate
