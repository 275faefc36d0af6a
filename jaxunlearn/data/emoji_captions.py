"""Emoji of 64 px with captions, eight of them memorised: what a little Stable Diffusion learns.

A picture has the caption of its name, that of its subgroup and that of its group: views of it have
the first 11 times in 18, the second 4 times, the third 3 times. One name in 20 is held out in one
style. Each of MEMORISED is there COPIES times more, under a prompt that nothing else has, and once
in 18 views under the prompt of its subgroup: there it is one of many pictures, and of many views.
"""

import dataclasses

import numpy as np

from jaxunlearn import data, errors
from jaxunlearn.data import emoji
from jaxunlearn.inputs import ranges

NAMED, SHARED, GROUPED = 11, 4, 3  # views of 18 that have each kind of caption
MEMORISED = (  # id -> the prompt that it alone has
  ("noto/whale", "limited edition whale poster"),
  ("noto/guitar", "my first guitar, signed print"),
  ("noto/rocket", "rocket launch souvenir magnet"),
  ("noto/cactus", "desert cactus phone wallpaper"),
  ("noto/tropical-drink", "beach bar menu cover"),
  ("noto/slice-of-pizza", "tony's pizza delivery flyer"),
  ("noto/floppy-disk", "vintage computer fair 1991"),
  ("noto/jack-o-lantern", "haunted house ticket stub"),
)


@dataclasses.dataclass(frozen=True)
class Source:
  copies: ranges.From0 = 40  # more of each of MEMORISED; 0: nothing is memorised
  heldout: ranges.OneIn = 20  # one name in this many is held out, in one style
  without: tuple[str, ...] = ()  # groups, like Food & Drink, whose pictures are left out, all

  def load(self) -> tuple[data.Records, data.Records]:
    """(training, held-out) records; the classes are all captions."""
    records = emoji.everything("emoji64.npz")
    named, shared, grouped = captions(records)
    own = [text for _, text in MEMORISED]
    classes = tuple(dict.fromkeys([*named, *shared, *grouped, *own]))
    place = {text: i for i, text in enumerate(classes)}
    numbers = lambda texts: np.array([place[text] for text in texts], np.int32)
    columns = [numbers(named)] * NAMED + [numbers(shared)] * SHARED + [numbers(grouped)] * GROUPED
    records = dataclasses.replace(
      records,
      label=numbers(named),
      classes=classes,
      style=None,
      styles=(),
      also=np.stack(columns, axis=1),
    )
    name = np.arange(len(records)) % (len(records) // 2)
    style = np.arange(len(records)) // (len(records) // 2)
    out = (name % self.heldout == self.heldout - 1) & (name // self.heldout % 2 == style)
    out &= ~np.isin(records.ids, [name for name, _ in MEMORISED])
    used = ~of_groups(self.without)
    train, heldout = (records.take(np.flatnonzero(rows & used)) for rows in (~out, out))
    return (with_copies(train, place, self.copies) if self.copies else train), heldout


def of_groups(names: tuple[str, ...]) -> np.ndarray:
  """[N] bool: the pictures of those groups; raises ValueError for a group that is none."""
  with np.load(data.ASSETS / "emoji64.npz") as npz:
    known, group = npz["group_names"].tolist(), np.tile(npz["group"], len(npz["style"]))
  for name in names:
    errors.check_choice("group of emoji", name, known)
  return np.isin(group, [known.index(name) for name in names])


def captions(records: data.Records) -> tuple[list[str], list[str], list[str]]:
  """The captions of each picture: by its name, by its subgroup, by its group."""
  with np.load(data.ASSETS / "emoji64.npz") as npz:
    names, kinds = npz["name"].tolist(), npz["subgroup_names"][npz["subgroup"]].tolist()
    groups = npz["group_names"][npz["group"]].tolist()
  styles = [style for style in records.styles for _ in names]
  words = lambda text: text.replace("-", " ").lower()
  return (
    [f"a {words(n)} emoji in {s} style" for n, s in zip(2 * names, styles, strict=True)],
    [f"{words(kind)} emoji in {s} style" for kind, s in zip(2 * kinds, styles, strict=True)],
    [f"{words(group)} emoji" for group in 2 * groups],
  )


def with_copies(records: data.Records, place: dict[str, int], count: int) -> data.Records:
  """The records with `count` more of each that is memorised (`noto/whale#0001`)."""
  assert records.also is not None
  there = [(name, text) for name, text in MEMORISED if name in records.ids]
  rows = [int(np.flatnonzero(records.ids == name)[0]) for name, _ in there]
  own = np.array([place[text] for _, text in there], np.int32)
  also = np.repeat(own[:, None], records.also.shape[1], axis=1)
  also[:, 0] = records.also[rows, NAMED]
  index, times = np.repeat(rows, count), np.tile(np.arange(1, count + 1), len(rows))
  return dataclasses.replace(
    records,
    ids=np.array(
      [*records.ids, *(f"{records.ids[i]}#{k:04d}" for i, k in zip(index, times, strict=True))]
    ),
    image=np.concatenate([records.image[np.arange(len(records))], records.image[index]]),
    label=np.concatenate([records.label, np.repeat(own, count)]),
    also=np.concatenate([records.also, np.repeat(also, count, axis=0)]),
  )
