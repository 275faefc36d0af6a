"""CLIP's tokenizer, from the files of a pipeline: texts to token ids, by byte-pair encoding.

    NFC, white space to one blank, lower case; words, single digits, runs of other signs; UTF-8
    bytes as printable characters; the merges of merges.txt in their order, `</w>` ends a word
    ids = [start] tokens [end] pad ... pad, cut to `length` with the end token kept

The work is the `tokenizers` library's. Text that does not fit is cut, and what was cut is told.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
FILES = ("vocab.json", "merges.txt")
LENGTH = 77

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token ids, and of each text the part that did not fit ("": all did)."""

  ids: Int[np.ndarray, "P L"]
  cut: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A folder's tokenizer; read it by `load`."""

  folder: pathlib.Path
  length: int = LENGTH
  pad: str = END  # Stable Diffusion 2 pads by "!"

  @functools.cached_property
  def _bpe(self) -> tokenizers.Tokenizer:
    bpe = models.BPE.from_file(
      *(str(self.folder / name) for name in FILES), unk_token=END, end_of_word_suffix="</w>"
    )
    made = tokenizers.Tokenizer(bpe)
    blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    special = dict.fromkeys((START, END, self.pad))  # also where a text spells them out
    made.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in special])
    return made

  @property
  def vocabulary(self) -> int:
    """How many tokens there are."""
    return self._bpe.get_vocab_size()

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


def load(folder: pathlib.Path) -> Tokenizer:
  """The tokenizer of a folder that holds vocab.json, merges.txt and, maybe, its configs.

  Raises:
    ValueError: a file is missing or damaged.
  """
  folder = pathlib.Path(folder)
  for name in FILES:
    if not (folder / name).is_file():
      raise ValueError(f"{folder / name} is not there; give the tokenizer folder of the pipeline")
  config = _read(folder / "tokenizer_config.json")
  special = _read(folder / "special_tokens_map.json") | config
  pad = special.get("pad_token") or END
  made = Tokenizer(
    folder,
    length=min(int(config.get("model_max_length", LENGTH)), LENGTH),
    pad=pad["content"] if isinstance(pad, dict) else pad,
  )
  if missing := {START, END, made.pad} - _read(folder / FILES[0]).keys():
    raise ValueError(
      f"{folder / FILES[0]} has no token {min(missing)!r}; give the tokenizer folder of the model"
    )
  try:
    made.id_of(START)
  except Exception as error:  # the library raises Exception itself
    raise ValueError(f"{folder} holds no CLIP tokenizer ({error}); fetch it again") from error
  return made


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object, {} where there is no file."""
  try:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
  except ValueError as error:
    raise ValueError(f"cannot read {path} ({error}); fetch it again") from error
