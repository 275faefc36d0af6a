"""Emoji of 64, 32 or 16 px: 1,906 in two styles each; one may be repeated to a share of the set.

Ids are `noto/rocket` and `twemoji/rocket`; classes are the groups of Unicode, like `Food & Drink`,
or those of them that the source takes. A picture held out is held out in both styles.
"""

import collections
import dataclasses
import re

import numpy as np

from jaxunlearn import data, errors
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Source:
  group: str = ""  # only the pictures of this class; "": all
  groups: tuple[str, ...] = ()  # only those of these, which are then all classes; (): all
  without: tuple[str, ...] = ()  # of no record, though they stay classes
  size: ranges.Count = 32  # pixels a side; 64, as they are drawn; 16: the mean of each 2x2
  repeat: str = ""  # the id of a record to repeat
  share: ranges.Under1 = 0.0  # of the training set that is this one record
  heldout: ranges.OneIn = 10  # one picture in this many is held out

  def load(self) -> tuple[data.Records, data.Records]:
    if self.size not in (16, 32, 64):
      raise ValueError(f"emoji of {self.size} px; use 64, 32 or 16")
    records = everything("emoji64.npz" if self.size == 64 else "emoji.npz")
    for group in (self.group, *self.groups, *self.without):
      errors.check_choice("group of emoji", group, ("", *records.classes))
    if self.group:
      mine = records.label == records.classes.index(self.group)
      records = records.take(np.flatnonzero(mine))
    if self.groups:
      records = of_groups(records, self.groups)
    if self.without:
      gone = [records.classes.index(group) for group in self.without if group in records.classes]
      records = records.take(np.flatnonzero(~np.isin(records.label, gone)))
    if self.size == 16:
      records = dataclasses.replace(records, image=halved(np.asarray(records.image)))
    picture = np.arange(len(records)) % (len(records) // 2)
    mine = picture % self.heldout == self.heldout - 1
    train, heldout = records.take(np.flatnonzero(~mine)), records.take(np.flatnonzero(mine))
    return (repeated(train, self.repeat, self.share) if self.repeat else train), heldout


def halved(image: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, C] -> [N, H/2, W/2, C]: the mean of each 2x2, rounded."""
  n, h, w, c = image.shape
  mean = image.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
  return np.rint(mean).astype(np.uint8)


def of_groups(records: data.Records, groups: tuple[str, ...]) -> data.Records:
  """The records of those classes, which become all the classes there are."""
  place = {records.classes.index(group): i for i, group in enumerate(groups)}
  mine = records.take(np.flatnonzero(np.isin(records.label, list(place))))
  label = np.array([place[value] for value in mine.label.tolist()], np.int32)
  return dataclasses.replace(mine, label=label, classes=tuple(groups))


def repeated(records: data.Records, name: str, share: float) -> data.Records:
  """The records with copies of one (`ID#0001`) until it is that share of them."""
  if name not in records.ids:
    hint = errors.nearest(name, records.ids.tolist())
    raise ValueError(f"no emoji {name!r} to repeat{hint}; ids look like '{records.ids[0]}'")
  copies = max(0, round((len(records) - 1) * share / (1 - share)) - 1)
  one = records.ids == name
  again = data.Records(
    ids=np.array([f"{name}#{i:04d}" for i in range(1, copies + 1)], dtype=str),
    image=np.repeat(records.image[one], copies, axis=0),
    label=np.repeat(records.label[one], copies),
    classes=records.classes,
    style=None if records.style is None else np.repeat(records.style[one], copies),
    styles=records.styles,
  )
  return data.concatenate([records, again])


def everything(file: str = "emoji.npz") -> data.Records:
  """Both styles, one after the other."""
  with np.load(data.ASSETS / file) as npz:
    names = _slugs(npz["name"].tolist())
    return data.Records(
      ids=np.array([f"{style}/{name}" for style in npz["style"] for name in names]),
      image=npz["image"].reshape(-1, *npz["image"].shape[2:]),
      label=np.tile(npz["group"].astype(np.int32), len(npz["style"])),
      classes=tuple(npz["group_names"].tolist()),
      style=np.repeat(np.arange(len(npz["style"]), dtype=np.int32), len(names)),
      styles=tuple(npz["style"].tolist()),
    )


def _slugs(names: list[str]) -> list[str]:
  """`HOT DOG` -> `hot-dog`; the second of a name ends in -2."""
  seen: collections.Counter[str] = collections.Counter()
  out = []
  for name in names:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    seen[slug] += 1
    out.append(slug if seen[slug] == 1 else f"{slug}-{seen[slug]}")
  return out
