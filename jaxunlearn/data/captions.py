"""A folder of pictures with a caption each; a caption is a condition, by its number.

    metadata.jsonl    {"file_name": "cats/0001.jpg", "text": "a cat"}      a line each, or
    metadata.csv      with the columns file_name and text                 as the Hub has them, or
    cats/0001.txt     beside cats/0001.jpg

Pictures are read as folder.py reads them. The classes of the records are the captions, sorted,
those of held-out pictures too: equal captions have one number. A file of more prompts, one a line,
adds classes that no picture has, for evaluations to ask for.
"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from jaxunlearn import data
from jaxunlearn.data import folder, walk
from jaxunlearn.data import ids as id_lists

LISTS = ("metadata.jsonl", "metadata.csv")
NAME = "file_name"


@dataclasses.dataclass(frozen=True)
class Source(folder.Source):
  file: str = ""  # the list of captions, .jsonl or .csv; "": one of LISTS, or a .txt beside each
  column: str = "text"  # of the list
  prompts: str = ""  # a file of more prompts, one a line; "": none

  def load(self) -> tuple[data.Records, data.Records]:
    """(training, held-out) records.

    Raises:
      ValueError: a picture without a caption, a list that cannot be read, or as folder.py.
    """
    parts = super().load()
    root = pathlib.Path(self.path).expanduser()
    found = self._captions(root, np.concatenate([part.ids for part in parts]).tolist())
    label, classes = folder.numbered([found[name] for part in parts for name in part.ids.tolist()])
    classes += tuple(text for text in self._more() if text not in classes)
    labels = np.split(label, [len(parts[0])])
    train, heldout = (
      dataclasses.replace(part, label=own, classes=classes, style=None, styles=())
      for part, own in zip(parts, labels, strict=True)
    )
    return train, heldout

  def _more(self) -> list[str]:
    """The prompts of no picture."""
    if not self.prompts:
      return []
    lines = id_lists.read(pathlib.Path(self.prompts).expanduser(), "data.prompts")
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))

  def _captions(self, root: pathlib.Path, ids: Sequence[str]) -> dict[str, str]:
    """The caption of each id; raises ValueError where some have none."""
    path = self._list(root)
    found = dict(self._read(path)) if path else beside(root, ids)
    if missing := [name for name in ids if not found.get(name)]:
      raise ValueError(
        f"{len(missing)} of {len(ids)} pictures in {root} have no caption: "
        f"{walk.listed(missing)}; add them to {path or 'a .txt beside each'}, or remove them"
      )
    if lost := sorted(found.keys() - set(ids)):
      told = f"{walk.listed(lost)} ({len(lost)})"
      logging.warning("%s has captions of pictures that are not there: %s", path, told)
    return found

  def _list(self, root: pathlib.Path) -> pathlib.Path | None:
    """The list of captions; None where they stand beside the pictures."""
    if self.file:
      return pathlib.Path(self.file).expanduser()
    return next((root / name for name in LISTS if (root / name).is_file()), None)

  def _read(self, path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(file name, caption) of each line; raises ValueError at the first that is none."""
    seen = set()
    for number, line in lines(path):
      name, text = line.get(NAME), line.get(self.column)
      if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(
          f"{path}, line {number}: {NAME} is {name!r} and {self.column} {text!r}; give text for "
          "both, or set config.data.column to the captions' name"
        )
      if name in seen:
        raise ValueError(f"{path}, line {number}: {name!r} is there twice; keep one of them")
      seen.add(name)
      yield name, " ".join(text.split())


def lines(path: pathlib.Path) -> Iterator[tuple[int, Mapping[str, object]]]:
  """The number and the fields of each line of a .jsonl or .csv file."""
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      if path.suffix == ".csv":
        yield from enumerate(csv.DictReader(file), start=2)
        return
      for number, text in enumerate(file, start=1):
        if text.strip():
          yield number, json.loads(text)
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(
      f"cannot read the captions in {path} ({error}); give .jsonl or .csv"
    ) from error


def beside(root: pathlib.Path, ids: Sequence[str]) -> dict[str, str]:
  """The caption in the .txt beside each picture that has one."""
  paths = {name: (root / name).with_suffix(".txt") for name in ids}
  return {
    name: " ".join(path.read_text(encoding="utf-8-sig").split())
    for name, path in paths.items()
    if path.is_file()
  }
