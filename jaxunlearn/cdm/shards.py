"""A shard: the endless batches of one source, such that a record changes nothing before it is seen.

In each epoch the records stand in the order of a hash of (seed, epoch, id). Without one of them
all others keep their places up to where it stood: every batch before its first is the same, bit by
bit, and so is every checkpoint. With `slices` > 1 a share of the records comes in only at the k-th
part of the training (Bourtoule et al., 2021, SISA), which puts that first batch later.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection

import numpy as np

from jaxunlearn import data, latents
from jaxunlearn.cdm import sources
from jaxunlearn.latents import cache
from jaxunlearn.methods import Rows


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
  """The records of one source, and when each is seen."""

  name: str
  records: data.Records
  batch: int
  steps: int  # of the whole training
  seed: int
  slices: int = 1
  conditional: bool = False
  codec: latents.Pixels | latents.Codec = latents.PIXELS

  def at(self, step: int) -> Rows:
    """The batch of a step: what the network sees, conditions if any, places in the shard.

    Latents and views are drawn by (seed, step, row): a record's absence changes no other's.
    """
    index = self.picks(step)
    c = self._conditions(index, step) if self.conditional else None
    return Rows(self._images(index, step), c, index.astype(np.int32))

  def prepare(self) -> None:
    """Encodes what is not yet in the cache: once, before threads ask for it."""
    if isinstance(self.codec, latents.Codec):
      _ = self._moments

  def _images(self, index: np.ndarray, step: int) -> np.ndarray:
    """float32: pixels in [-1, 1], or latents drawn anew at each step."""
    if not isinstance(self.codec, latents.Codec):
      return data.to_model(self.records.image[index])
    return self._moments.draw(index, np.random.default_rng((self.seed, step, 4)))

  def _conditions(self, index: np.ndarray, step: int) -> np.ndarray:
    """Each record's own, or one of its views'."""
    if self.records.also is None:
      return self.records.conditions[index]
    view = np.random.default_rng((self.seed, step, 1)).integers(
      0, self.records.also.shape[1], len(index)
    )
    return self.records.also[index, view]

  @functools.cached_property
  def _moments(self) -> cache.Moments:
    assert isinstance(self.codec, latents.Codec)
    return cache.fill(self.codec, self.records)

  def picks(self, step: int) -> np.ndarray:
    """[batch] int: the places of the records of a step."""
    stage = step * self.slices // self.steps
    mine = self._members(stage)
    place = (step - self._first(stage)) * self.batch + np.arange(self.batch)
    epoch, place = np.divmod(place, len(mine))
    pairs = zip(epoch.tolist(), place.tolist(), strict=True)
    return np.array([self._order(stage, e)[p] for e, p in pairs])

  def first_step(self, ids: Collection[str]) -> int | None:
    """The first step that sees one of those records; None where none does."""
    wanted = np.isin(self.records.ids, list(ids))
    for stage in range(self.slices):
      new = wanted[self._order(stage, 0)]
      last = self._first(stage + 1)
      if new.any():
        step = self._first(stage) + int(np.argmax(new)) // self.batch
        if step < last:
          return step
    return None

  def without(self, ids: Collection[str]) -> "Shard":
    """The shard as it would be, had it never had those records."""
    kept = np.flatnonzero(~np.isin(self.records.ids, list(ids)))
    return dataclasses.replace(self, records=self.records.take(kept))

  def _first(self, stage: int) -> int:
    """The first step of a stage: where step * slices // steps first equals it."""
    return -(-stage * self.steps // self.slices)

  def _members(self, stage: int) -> np.ndarray:
    return np.flatnonzero(self._slice <= stage)

  @functools.cached_property
  def _slice(self) -> np.ndarray:
    """[N] int: the part of the training at which each record comes in; the first has some."""
    u = [sources.uniform(self.seed, "slice", name) for name in self.records.ids.tolist()]
    return np.floor(np.array(u) * self.slices).astype(int)

  @functools.cached_property
  def _hashes(self) -> np.ndarray:
    digest = lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:8]
    return np.frombuffer(b"".join(map(digest, self.records.ids.tolist())), np.uint64)

  @functools.cached_property
  def _order(self) -> Callable[[int, int], np.ndarray]:
    """(stage, epoch) -> the places of the records of that stage, as that epoch shows them."""

    def order(stage: int, epoch: int) -> np.ndarray:
      mine = self._members(stage)
      return mine[np.argsort(_mixed(self._hashes[mine], stage, epoch), kind="stable")]

    return functools.lru_cache(maxsize=8)(order)


def _mixed(hashes: np.ndarray, stage: int, epoch: int) -> np.ndarray:
  """SplitMix64 (Steele et al., 2014) of the hashes and both numbers."""
  with np.errstate(over="ignore"):
    z = hashes + np.uint64(0x9E3779B97F4A7C15) * np.uint64(1 + stage + (epoch << 16))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
