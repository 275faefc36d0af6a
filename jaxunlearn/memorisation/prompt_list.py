"""A list of prompts in a file, one a line; behind a tab another that memorises the same in part.

a prompt
a prompt <TAB> the prompt, modified by hand
"""

import dataclasses
import hashlib
import pathlib
import re

from jaxunlearn.data import ids

LONGEST = 48  # letters of a folder's name


@dataclasses.dataclass(frozen=True)
class Entry:
  """A line of the list."""

  prompt: str
  modified: str = ""  # "": none by hand

  @property
  def name(self) -> str:
    """Of its folder: the words in small letters, or a hash where there are none."""
    words = "-".join(re.findall(r"[a-z0-9]+", self.prompt.lower()))
    digest = hashlib.sha256(self.prompt.encode()).hexdigest()[:6]
    return words if 0 < len(words) <= LONGEST else f"{words[:LONGEST]}{'-' * bool(words)}{digest}"


def read(path: pathlib.Path) -> list[Entry]:
  """The list.

  Raises:
    ValueError: no such file, an empty one, a prompt that is there twice, or a third column.
  """
  entries: list[Entry] = []
  seen: dict[str, int] = {}
  for number, line in enumerate(ids.read(path, "--prompts"), start=1):
    prompt, *more = (" ".join(part.split()) for part in line.split("\t"))
    if len(more) > 1:
      raise ValueError(
        f"{path}, prompt {number}: {len(more) + 1} columns; give a prompt, or a prompt, a tab and "
        "the modified one"
      )
    entry = Entry(prompt, *more)
    if (first := seen.setdefault(entry.name, number)) != number:
      raise ValueError(
        f"{path}: prompts {first} and {number} are the same, {prompt!r}; keep one of them"
      )
    entries.append(entry)
  return entries
