"""Emoji of 64 px of a few kinds in six styles: two as they are, four drawn by rule from one.

    noto, twemoji        as they are
    grey                 the luma of noto in all three channels
    negative             255 - noto
    mosaic               the mean of each 8 x 8 pixels of noto, or of `stone` x `stone`
    edges                255 - the size of noto's gradient (Sobel), of the luma

Every picture is there in every style, as in UnlearnCanvas (Zhang et al., 2024), so that style and
object are measured apart. Ids are `edges/rocket`. A picture is held out in all styles or in none.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8

from jaxunlearn import data, errors
from jaxunlearn.data import emoji
from jaxunlearn.data.looks import LUMA
from jaxunlearn.inputs import ranges

DRAWN = ("noto", "twemoji")  # as they are
Rule = Callable[[np.ndarray], np.ndarray]  # uint8 pictures of noto in, as many out
STONE = 8  # of the mosaic, pixels a side; an autoencoder of f = 4 blurs stones of 4 away
# Subgroups of Unicode that look alike within and unlike one another, with pictures enough.
KINDS = (
  *("animal mammal", "country flag", "face concerned", "geometric"),
  *("heart", "person role", "time", "transport ground"),
)


@dataclasses.dataclass(frozen=True)
class Source:
  kinds: tuple[str, ...] = KINDS  # the classes, by the names of Unicode's subgroups
  styles: tuple[str, ...] = ("noto", "twemoji", "grey", "negative", "mosaic", "edges")
  most: ranges.Count = 60  # pictures of a kind, spread over all that there are
  heldout: ranges.OneIn = 8  # one picture in this many is held out
  stone: ranges.Count = STONE

  def load(self) -> tuple[data.Records, data.Records]:
    """(training, held-out) records; raises ValueError for a kind or a style that is none."""
    everything = emoji.everything("emoji64.npz")
    with np.load(data.ASSETS / "emoji64.npz") as npz:
      kinds = [name.replace("-", " ").lower() for name in npz["subgroup_names"][npz["subgroup"]]]
    for what, given, known in (
      ("kind of emoji", self.kinds, sorted(set(kinds))),
      ("style of emoji", self.styles, (*DRAWN, *RULES)),
    ):
      for name in given:
        errors.check_choice(what, name, known)
    rows = [row for kind in self.kinds for row in spread(np.array(kinds) == kind, self.most)]
    label = np.array([self.kinds.index(kinds[row]) for row in rows], np.int32)
    rules = RULES | {"mosaic": functools.partial(mosaic, stone=self.stone)}
    parts = [drawn(everything, np.array(rows), style, rules) for style in self.styles]
    count = len(rows)
    records = data.Records(
      ids=np.concatenate([ids for ids, _ in parts]),
      image=np.concatenate([image for _, image in parts]),
      label=np.tile(label, len(parts)),
      classes=tuple(self.kinds),
      style=np.repeat(np.arange(len(parts), dtype=np.int32), count),
      styles=tuple(self.styles),
    )
    out = np.arange(len(records)) % count % self.heldout == self.heldout - 1
    return records.take(np.flatnonzero(~out)), records.take(np.flatnonzero(out))


def spread(mask: np.ndarray, most: int) -> list[int]:
  """At most so many places of a mask, at equal distances."""
  found = np.flatnonzero(mask)
  count = min(most, len(found))
  return found[np.arange(count) * len(found) // max(count, 1)].tolist()


def drawn(
  records: data.Records, rows: np.ndarray, style: str, rules: Mapping[str, Rule]
) -> tuple[np.ndarray, UInt8[np.ndarray, "N H W 3"]]:
  """Ids and pictures in one style; `rows` count the pictures of a style."""
  count = len(records) // len(records.styles)
  own = style if style in DRAWN else DRAWN[0]
  mine = records.styles.index(own) * count + rows
  names = [name.partition("/")[2] for name in records.ids[mine].tolist()]
  image = np.asarray(records.image)[mine]
  ids = np.array([f"{style}/{name}" for name in names])
  return ids, rules[style](image) if style in rules else image


def grey(image: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
  return _three(image @ LUMA)


def negative(image: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
  return 255 - image


def mosaic(image: UInt8[np.ndarray, "N H W 3"], stone: int = STONE) -> UInt8[np.ndarray, "N H W 3"]:
  n, h, w, c = image.shape
  if h % stone or w % stone:
    raise ValueError(f"stones of {stone} pixels do not divide {h}x{w} pictures; give a divisor")
  stones = image.reshape(n, h // stone, stone, w // stone, stone, c).mean(axis=(2, 4))
  return np.rint(stones.repeat(stone, axis=1).repeat(stone, axis=2)).astype(np.uint8)


def edges(image: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
  luma = np.pad(image @ LUMA, ((0, 0), (1, 1), (1, 1)), mode="edge")
  smooth = lambda a: a[..., :-2] + 2 * a[..., 1:-1] + a[..., 2:]
  across = smooth((luma[:, :, 2:] - luma[:, :, :-2]).swapaxes(1, 2)).swapaxes(1, 2)
  down = smooth(luma[:, 2:] - luma[:, :-2])
  return _three(255 - np.minimum(np.hypot(across, down), 255))


def _three(values: np.ndarray) -> np.ndarray:
  return np.rint(values[..., None]).astype(np.uint8).repeat(3, axis=-1)


RULES: dict[str, Rule] = {"grey": grey, "negative": negative, "mosaic": mosaic, "edges": edges}
