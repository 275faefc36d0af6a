"""Prompts that are almost the same, by rule: some memorise in part, as a deletion needs.

Alberti et al. (2025) insert and delete tokens by hand, like two apostrophes at the end. The rules:

    punctuated   '' at the end, !!! at the end, in quotes, a comma after each word
    repeated     one word twice; the whole prompt twice
    dropped      without one word
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Variant(NamedTuple):
  rule: str
  prompt: str


def variants(prompt: str, most: int = 0) -> list[Variant]:
  """Those of a prompt, each once and none the prompt itself; `most` of them, spread over the rules.

  0 is all of them.
  """
  found = {one.prompt: one for one in reversed(list(_every(prompt))) if one.prompt != prompt}
  out = list(reversed(found.values()))
  if not 0 < most < len(out):
    return out
  return [out[i] for i in np.linspace(0, len(out) - 1, most).round().astype(int)]


def _every(prompt: str) -> Iterator[Variant]:
  words = prompt.split()
  yield Variant("punctuated: '' at the end", f"{prompt} ''")
  yield Variant("punctuated: !!! at the end", f"{prompt}!!!")
  yield Variant("punctuated: in quotes", f'"{prompt}"')
  if len(words) > 1:
    yield Variant("punctuated: a comma after each word", ", ".join(words))
  yield Variant("repeated: all of it", f"{prompt} {prompt}")
  for i, word in enumerate(words):
    yield Variant(f"repeated: {word}", " ".join([*words[:i], word, *words[i:]]))
  for i, word in enumerate(words if len(words) > 1 else ()):
    yield Variant(f"dropped: {word}", " ".join([*words[:i], *words[i + 1 :]]))
