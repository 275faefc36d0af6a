"""The named streams that methods read: endless shuffled batches of some of the records.

config.streams maps each stream of a method to what it takes, in words or as a `Take`:

    all, retain, forget   the records, those to keep, those to forget
    class:NAME            those of one class (or style:NAME), without the ones to forget
    samples:FOLDER        what another run's model generated, without the concept to forget
    all_samples:FOLDER    the same with it
    data:NAME             the training set of another source, with that source's defaults, without
                          the records to forget

A conditional model is told of each image its own condition, or what `Take.c` says: an alternative
image under the condition to forget is one with c = forget, under another with c = class:NAME.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxunlearn import data, errors, latents
from jaxunlearn.diffusion import NULL
from jaxunlearn.inputs import ranges
from jaxunlearn.latents import cache
from jaxunlearn.methods import Rows

SUBSETS = ("all", "retain", "forget")
OTHERS = ("class", "style", "samples", "all_samples", "data")
NAMED = ("class", "style")  # of a condition
CONDITIONS = ("own", "forget", "null", "kept")
TARGETS = ("", "next", "random", "null", "own")
ATTACKS = ("", "dimra", "unrelated", "few_shot", "inversion", "prompt_search")
STILL = ("paraphrase", "completion", "rounding")  # attacks that train nothing
SAMPLES = "samples.npz"  # image uint8 [N, H, W, C] and c int32 [N] or [N, n], in a run's folder


@dataclasses.dataclass(frozen=True)
class Take:
  """What a stream takes, and which conditions its rows get."""

  take: str = "all"
  first: ranges.From0 = 0  # only so many of the records, picked by the seed; 0: all
  # own; forget: the one to forget; null: none; kept: any of those to keep, at random; or class:NAME
  # (style:NAME): that one.
  c: str = "own"
  # Rows.to, where a method maps the condition: next, random (of the others), null, or own: that of
  # the record, of rows that are shown under c = forget.
  to: str = ""

  def __post_init__(self) -> None:
    if self.take.partition(":")[0] not in OTHERS:
      errors.check_choice("subset", self.take, (*SUBSETS, *(f"{name}:..." for name in OTHERS)))
    if self.c.partition(":")[0] not in NAMED:
      errors.check_choice(
        "condition of a stream", self.c, (*CONDITIONS, *(f"{name}:..." for name in NAMED))
      )
    errors.check_choice("condition to map to", self.to, TARGETS)
    ranges.check(self)


@dataclasses.dataclass(frozen=True)
class Stream:
  """An endless shuffled sequence of batches over `index`: a pure function of (seed, step).

  Each epoch is a fresh permutation; batches run over epoch borders, so none is short.
  """

  records: data.Records
  index: np.ndarray
  batch: int
  seed: tuple[int, ...]
  conditional: bool = False
  take: Take = Take()
  concept: data.Concept | None = None
  shown: data.Concept | None = None  # what its images are shown under; None: see take.c
  counts: tuple[int, ...] = ()  # the values of each of the model's conditions
  moments: Callable[[], cache.Moments] | None = None  # of the records, where the model sees latents

  def at(self, step: int, rows: np.ndarray | slice = slice(None)) -> Rows:
    """The batch of a step: float32 images in [-1, 1], conditions if any, record numbers.

    `rows` are the ones wanted of it; the images of others are not read.
    """
    epoch, place = np.divmod(step * self.batch + np.arange(self.batch), len(self.index))
    order = {e: self._permutation(e) for e in np.unique(epoch).tolist()}
    picks = zip(epoch.tolist(), place.tolist(), strict=True)
    return self._rows(self.index[[order[e][p] for e, p in picks]], step, rows)

  def __len__(self) -> int:
    return len(self.index)

  def chunks(self, size: int = 256) -> Iterator[Rows]:
    """Every record of the stream once, in order, `size` at a time."""
    for i, start in enumerate(range(0, len(self), size)):
      yield self._rows(self.index[start : start + size], i)

  def pick(self, n: int, seed: int) -> Rows:
    """n records at random, or all where there are fewer."""
    rng = np.random.default_rng((*self.seed, seed, 3))
    return self._rows(self.index[rng.permutation(len(self))[:n]], seed)

  def told(self) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The condition of each record and what it is mapped to; no image is read."""
    if not self.conditional:
      return None, None
    rng = np.random.default_rng((*self.seed, 5))
    c = self._conditions(self.index, rng)
    return c, self._targets(c, self.index, rng)

  def _permutation(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((*self.seed, epoch)).permutation(len(self.index))

  def _rows(self, index: np.ndarray, step: int, rows: np.ndarray | slice = slice(None)) -> Rows:
    image = self._images(index, step, rows)
    number = index[rows].astype(np.int32)
    if not self.conditional:
      return Rows(image, None, number)
    rng = np.random.default_rng((*self.seed, step, len(index), 1))
    # Of the whole batch: the draws are the same in any process.
    c = self._conditions(index, rng)
    to = self._targets(c, index, rng)
    return Rows(image, c[rows], number, to if to is None else to[rows])

  def _images(self, index: np.ndarray, step: int, rows: np.ndarray | slice) -> np.ndarray:
    """What the network sees of those records: pixels, or latents drawn anew at each step."""
    if self.moments is None:
      return data.to_model(self.records.image[index[rows]])
    rng = np.random.default_rng((*self.seed, step, len(index), 4))
    return self.moments().draw(index, rng, rows)

  def _conditions(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if self.take.c == "own":
      return self._own(index, rng)
    c = np.full((len(index), len(self.counts)), NULL, np.int32)
    if self.take.c == "kept":
      c = kept(self.counts, self.concept, rng, len(index))
    if self.shown:
      c = self.shown.put(self.records.conditions[index] if len(self.counts) > 1 else c)
    return c[:, 0] if len(self.counts) == 1 else c

  def _own(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The records' conditions; of a record that has several, one at random."""
    if self.records.also is None:
      return self.records.conditions[index]
    view = rng.integers(0, self.records.also.shape[1], len(index))
    return self.records.also[index, view]

  def _targets(
    self, c: np.ndarray, index: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray | None:
    if self.take.to == "own":
      return self._own(index, rng)
    if not self.take.to or self.concept is None:
      return None
    count = self.counts[self.concept.column]
    value = c.reshape(len(c), -1)[:, self.concept.column]
    return {
      "next": lambda: self.concept.put(c, (value + 1) % count),
      "random": lambda: self.concept.put(c, (value + rng.integers(1, count, len(c))) % count),
      "null": lambda: np.full_like(c, NULL),
    }[self.take.to]()


def every(counts: tuple[int, ...]) -> np.ndarray:
  """[P, len(counts)] int32: each combination of the conditions once, the last varying fastest."""
  grid = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1)
  return grid.reshape(-1, len(counts)).astype(np.int32)


def kept(
  counts: tuple[int, ...], concept: data.Concept | None, rng: np.random.Generator, n: int
) -> np.ndarray:
  """[n, len(counts)] int32: conditions at random, without the value of the concept."""
  columns = [rng.integers(0, count, n) for count in counts]
  if concept:
    count = counts[concept.column]
    columns[concept.column] = (concept.value + rng.integers(1, count, n)) % count
  return np.stack(columns, axis=1).astype(np.int32)


def make(
  records: data.Records,
  forget: np.ndarray,
  takes: Mapping[str, Any],
  batch: int,
  seed: int,
  concept: data.Concept | None = None,
  conditional: bool = False,
  codec: latents.Pixels | latents.Codec = latents.PIXELS,
) -> dict[str, Stream]:
  """The named streams of a run: `takes` maps each to the words or fields of a `Take`.

  Where the codec makes latents, they are encoded when the first is asked for.

  Raises:
    ValueError: a subset that does not exist or is empty, or a condition that is not there.
  """
  out: dict[str, Stream] = {}
  encoded: dict[int, Callable[[], cache.Moments]] = {}  # once for streams of the same records
  for name, what in takes.items():
    take = as_take(what)
    asks = f"stream {name!r} asks for conditions c={take.c!r} to={take.to!r}, which a conditional"
    of_concept = take.to not in ("", "own") or take.c in ("forget", "kept")
    if of_concept and not (conditional and concept):
      raise ValueError(
        f"{asks} model and a class or style to forget give; set config.forget.label or style"
      )
    if (take.to or ":" in take.c) and not conditional:
      raise ValueError(f"{asks} model alone has; take c='own' and to='', or another model")
    chosen, index = select(take.take, records, forget, concept)
    seen = int(forget[index].sum()) if chosen is records else 0
    _check(name, take, len(index), seen)
    shown = _shown(take, records, concept)
    foreign = "own" in (take.c, take.to) or (shown and len(records.vocabulary) > 1)
    if conditional and foreign and chosen.vocabulary != records.vocabulary:
      raise ValueError(
        f"stream {name!r} takes {take.take}, whose classes are not this model's; set its c to "
        "kept or null"
      )
    key = (seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    if take.first:
      order = np.random.default_rng((*key, 0, 2)).permutation(len(index))
      index = index[np.sort(order[: take.first])]
    counts = tuple(map(len, records.vocabulary))
    moments = None
    if isinstance(codec, latents.Codec):
      once = functools.cache(functools.partial(cache.fill, codec, chosen))
      moments = encoded.setdefault(id(chosen), once)
    out[name] = Stream(
      chosen, index, batch, key, conditional, take, concept, shown, counts, moments
    )
  return out


def _shown(take: Take, records: data.Records, concept: data.Concept | None) -> data.Concept | None:
  """The one condition that a take's images are shown under, where it is one."""
  kind, _, name = take.c.partition(":")
  if kind in NAMED:
    return data.named(records, kind, name)
  return concept if take.c == "forget" else None


def _check(name: str, take: Take, count: int, seen: int) -> None:
  """Raises ValueError for a stream of no records, or of some to forget where it is of others."""
  if not count:
    advice = "say what to delete in config.forget"
    if take.take != "forget":
      advice = "name one with records that are not to be forgotten"
    raise ValueError(f"stream {name!r} is the {take.take} set, which is empty; {advice}")
  if take.c == "forget" and seen:
    raise ValueError(
      f"stream {name!r} shows {seen} records to forget under the condition to forget; take "
      f"something else than {take.take!r}, like class:NAME or retain"
    )


def check_attack(
  attack: str, made: Mapping[str, Stream], records: data.Records, forget: np.ndarray
) -> None:
  """Raises ValueError where an attack sees what its name says it does not, or the reverse."""
  errors.check_choice("attack", attack, (*ATTACKS, *STILL))
  for name, stream in made.items():
    seen = int(forget[stream.index].sum()) if stream.records is records else 0
    if stream.take.take.startswith("all_samples:") and stream.concept:
      seen = int(stream.concept.matches(stream.records.conditions[stream.index]).sum())
    if attack == "dimra" and seen:
      raise ValueError(
        f"attack dimra knows nothing of what was forgotten and stream {name!r} has {seen} records "
        "of it; take retain, samples:FOLDER or data:NAME, or set config.attack to few_shot"
      )
    if attack == "unrelated" and (stream.records is records or seen):
      raise ValueError(
        f"attack unrelated trains on other data and stream {name!r} takes {stream.take.take}; take "
        "data:NAME with c=null or kept, or set config.attack to dimra"
      )
    if attack in ("few_shot", "inversion", "prompt_search") and not seen:
      raise ValueError(
        f"attack {attack} relearns from images of what was forgotten and stream {name!r} has none; "
        "take forget (first=10 of them), or set config.attack to dimra"
      )


def check_still(attack: str, steps: int, bits: int) -> None:
  """Raises ValueError where an attack that trains nothing has steps, or rounds to no bits."""
  if attack in STILL and steps:
    raise ValueError(f"attack {attack} trains nothing and config.train.steps is {steps}; use 0")
  if attack == "rounding" and not bits:
    raise ValueError("attack rounding rounds weights and config.init_bits is 0; use 8 or 4")


def as_take(what: Any) -> Take:
  return Take(what) if isinstance(what, str) else errors.build(Take, "stream", dict(what))


def select(
  words: str, records: data.Records, forget: np.ndarray, concept: data.Concept | None
) -> tuple[data.Records, np.ndarray]:
  """The records that those words mean, and the places of the ones to take among them."""
  kind, _, name = words.partition(":")
  if kind in SUBSETS:
    masks = {"all": np.ones(len(records), bool), "retain": ~forget, "forget": forget}
    return records, np.flatnonzero(masks[kind])
  if kind in ("class", "style"):
    wanted = data.named(records, kind, name)
    return records, np.flatnonzero(wanted.matches(records.conditions) & ~forget)
  if kind in ("samples", "all_samples"):
    chosen = samples(pathlib.Path(name), records)
    gone = np.zeros(len(chosen), bool)
    if concept and kind == "samples":
      gone = concept.matches(chosen.conditions)
    return chosen, np.flatnonzero(~gone)
  chosen = data.load(name)[0]
  data.check_one_size({chosen.image.shape[1:], records.image.shape[1:]})
  return chosen, np.flatnonzero(~np.isin(chosen.ids, records.ids[forget]))


def samples(folder: pathlib.Path, like: data.Records) -> data.Records:
  """What a run's model generated, as records with the classes and styles of `like`.

  Raises:
    ValueError: the run has no samples with conditions, or of other conditions.
  """
  path = folder / SAMPLES
  if not path.is_file():
    raise ValueError(
      f"{path} does not exist; name a finished run of a conditional model with config.eval.keep"
    )
  with np.load(path) as npz:
    image, c = npz["image"], npz["c"].reshape(len(npz["c"]), -1)
  if c.shape[1] != len(like.vocabulary) or image.shape[1:] != like.image.shape[1:]:
    raise ValueError(
      f"{path} holds images {image.shape[1:]} of {c.shape[1]} conditions and this config's data "
      f"{like.image.shape[1:]} of {len(like.vocabulary)}; name a run on the same data"
    )
  ids = np.array([f"sample/{i:05d}" for i in range(len(image))])
  style = c[:, 1] if c.shape[1] > 1 else None
  return data.Records(ids, image, c[:, 0], like.classes, style, like.styles)
