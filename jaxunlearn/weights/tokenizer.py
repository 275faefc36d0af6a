"""CLIP's tokenizer, from the files of a pipeline: texts to token ids, by byte-pair encoding.

    NFC, white space to one blank, lower case; words, single digits, runs of other signs; UTF-8
    bytes as printable characters; the merges of merges.txt in their order, `</w>` ends a word
    ids = [start] tokens [end] pad ... pad, cut to `length` with the end token kept

The work is the `tokenizers` library's. Text that does not fit is cut, and what was cut is told.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL_TOKENS = (START, END)
FILES = ("vocab.json", "merges.txt")
WHOLE, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
LENGTH = 77

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token ids, and of each text the part that did not fit ("": all did)."""

  ids: Int[np.ndarray, "P L"]
  cut: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
  """A folder's tokenizer; read it by `load`."""

  folder: pathlib.Path
  words: Mapping[str, int]  # token -> id
  merges: Sequence[tuple[str, str]]
  length: int = LENGTH
  pad: str = END  # Stable Diffusion 2 pads by "!"
  new: tuple[str, ...] = ()  # tokens behind the vocabulary, in order

  @functools.cached_property
  def _bpe(self) -> tokenizers.Tokenizer:
    bpe = models.BPE(dict(self.words), list(self.merges), unk_token=END, end_of_word_suffix="</w>")
    made = tokenizers.Tokenizer(bpe)
    blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    special = dict.fromkeys((START, END, self.pad))  # also where a text spells them out
    made.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in special])
    made.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in self.new])
    return made

  @property
  def vocabulary(self) -> int:
    """How many tokens there are."""
    return self._bpe.get_vocab_size()

  def with_tokens(self, new: Sequence[str]) -> "Tokenizer":
    """The same with those tokens besides; raises ValueError where one is none, or not new."""
    for token in new:
      if token in self.words or not token.strip():
        raise ValueError(f"{token!r} is no new token of {self.folder}; use one like '<it>'")
    return dataclasses.replace(self, new=(*self.new, *new))

  def pieces(self, text: str) -> tuple[int, ...]:
    """The ids of a text alone, however many."""
    return tuple(self._bpe.encode(text).ids)

  def id_of(self, token: str) -> int:
    """The id of a token; raises ValueError where the vocabulary lacks it."""
    found = self._bpe.token_to_id(token)
    if found is None:
      raise ValueError(f"{self.folder} has no token {token!r}; give the tokenizer of this model")
    return found

  def encode(self, texts: Sequence[str]) -> Encoded:
    """The ids of each text, all of `length`; the empty text is that without a prompt."""
    start, end, pad = (self.id_of(token) for token in (START, END, self.pad))
    room = self.length - 2
    rows, cut = [], []
    for text, found in zip(texts, self._bpe.encode_batch(list(texts)), strict=True):
      ids = [start, *found.ids[:room], end]
      rows.append(ids + [pad] * (self.length - len(ids)))
      cut.append(text[found.offsets[room][0] :] if len(found.ids) > room else "")
    return Encoded(np.array(rows, np.int32).reshape(-1, self.length), tuple(cut))

  def cut_to(self, texts: Sequence[str], length: int) -> "Tokenizer":
    """One of few tokens that segments these texts as this one does, at most `length` of them.

    It has the letters, the merges that the texts need, in their order, and the special tokens:
    other words fall into smaller pieces.
    """
    rank = {pair: i for i, pair in enumerate(self.merges)}
    used = set[int]()
    for word in {word for text in texts for word in self._words_of(text)}:
      used |= _merges_of([*word[:-1], f"{word[-1]}</w>"], rank)
    merges = [self.merges[i] for i in sorted(used)]
    whole = {"".join(pair) for pair in self.merges}
    letters = [token for token in self.words if token not in whole and token not in SPECIAL_TOKENS]
    tokens = [*letters, *("".join(pair) for pair in merges), *SPECIAL_TOKENS]
    words = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return dataclasses.replace(self, words=words, merges=merges, length=length)

  def _words_of(self, text: str) -> list[str]:
    """The words of a text, in the letters that merges are of."""
    normalizer, splitter = self._bpe.normalizer, self._bpe.pre_tokenizer
    assert normalizer is not None and splitter is not None
    return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]

  def save(self, folder: pathlib.Path) -> None:
    """Writes its files into a folder, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    words, merges = (folder / name for name in FILES)
    words.write_text(json.dumps(dict(self.words), ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
    merges.write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": self.pad, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.length, **special}
    for name, content in ((CONFIG, config), (SPECIAL, special)):
      (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _merges_of(pieces: list[str], rank: Mapping[tuple[str, str], int]) -> set[int]:
  """The merges that make one token after the other of a word's letters: the lowest rank first."""
  used = set[int]()
  while True:
    found = [(rank[pair], i) for i, pair in enumerate(itertools.pairwise(pieces)) if pair in rank]
    if not found:
      return used
    lowest, i = min(found)
    pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    used.add(lowest)


def load(folder: pathlib.Path) -> Tokenizer:
  """The tokenizer of a folder: vocab.json and merges.txt, or tokenizer.json, which has both.

  Raises:
    ValueError: a file is missing or damaged.
  """
  folder = pathlib.Path(folder)
  try:
    words, merges = _parts(folder)
    config = _read(folder / CONFIG)
    pad = (_read(folder / SPECIAL) | config).get("pad_token") or END
    pad = pad["content"] if isinstance(pad, dict) else pad
    length = min(int(config.get("model_max_length", LENGTH)), LENGTH)
    made = Tokenizer(folder, words, merges, length, pad)
    if missing := {START, END, pad} - words.keys():
      raise ValueError(f"no token {min(missing)!r}")
    made.id_of(START)
  except Exception as error:  # the library raises Exception itself
    raise ValueError(
      f"{folder} holds no CLIP tokenizer ({error}); give the tokenizer folder of the model"
    ) from error
  return made


def _parts(folder: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """The vocabulary and the merges, of whichever files there are."""
  words, merges = (folder / name for name in FILES)
  if not words.is_file() and (folder / WHOLE).is_file():
    model = _read(folder / WHOLE)["model"]
    return model["vocab"], [_pair(one) for one in model["merges"]]
  for path in (words, merges):
    if not path.is_file():
      raise ValueError(f"{path.name} is not there")
  lines = merges.read_text(encoding="utf-8").split("\n")
  return _read(words), [_pair(line) for line in lines if line and not line.startswith("#version")]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
  first, second = merge.split() if isinstance(merge, str) else merge
  return first, second


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object, {} where there is no file."""
  try:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
  except ValueError as error:
    raise ValueError(f"cannot read {path.name}: {error}") from error
