"""The prompt book: which prompt each condition of a text-to-image model stands for.

A condition is a number, as everywhere: of a caption, or of a class and a style that a template
makes a prompt of, like "a {class} emoji in {style} style". The book has the token ids of every
combination, and last those of the empty prompt, which NULL leads to.

A new token (`config.prompts.token`) stands in the place of the name of what is to be forgotten: in
every prompt that asks for it.
"""

import dataclasses
import functools
import itertools
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float, Int

from jaxunlearn import data, errors
from jaxunlearn.inputs import ranges
from jaxunlearn.models.text_to_image import Book
from jaxunlearn.weights.tokenizer import Tokenizer

FIELDS = ("class", "style")
SHOWN = 3  # prompts that are cut of which a warning tells


@dataclasses.dataclass(frozen=True)
class Options:
  """config.prompts."""

  template: str = ""  # like "a {class} emoji in {style} style"; "": the name of the class
  tokenizer: str = ""  # the model whose tokenizer it is; "": init_from
  blank: str = ""  # a sign of names that is a blank in prompts, like _
  prefix: ranges.From0 = 0  # tokens before each prompt that an attack searches for
  token: str = ""  # a new one to be learned, like <it>; "": none
  token_start: str = ""  # the word that it begins as; "": the name that it replaces
  token_count: ranges.Count = 1  # how many stand for it, <it> <it>_1 ...

  def __post_init__(self) -> None:
    ranges.check(self)

  @property
  def tokens(self) -> tuple[str, ...]:
    """The new ones, named as diffusers does."""
    more = [f"{self.token}_{i}" for i in range(1, self.token_count)]
    return (self.token, *more) if self.token else ()


Names = Sequence[Sequence[str]]  # of the values of each condition


class New(NamedTuple):
  """The names as prompts have them, the tokenizer that knows them, and what new tokens begin as."""

  vocabulary: Names
  words: Tokenizer
  start: tuple[int, ...] = ()


def spelt(vocabulary: Sequence[Sequence[str]], blank: str) -> list[list[str]]:
  """The names as prompts have them: a blank where they have that sign."""
  return [[name.replace(blank, " ") if blank else name for name in names] for names in vocabulary]


@dataclasses.dataclass(frozen=True)
class Encoder:
  """The text encoder of a model as it is, and its book of prompts."""

  net: Any  # a text_to_image.Net with a book
  params: Any  # of the whole model
  words: Callable[[], Tokenizer]  # read where a prompt is spelt out

  def last(self, given: np.ndarray | Sequence[str]) -> Float[np.ndarray, "P D"]:
    """The state of the last token of each prompt, before the end token: of its number, or text.

    That of an empty prompt is the state of the start token, which all prompts share.
    """
    ids = self._ids(given)
    end = np.argmax(ids == self.net.text.end, axis=1)
    states = np.asarray(_states(self.net.text, self.params["text_encoder"], jnp.asarray(ids)))
    return states[np.arange(len(ids)), end - 1]

  def _ids(self, given: np.ndarray | Sequence[str]) -> np.ndarray:
    if isinstance(given[0], str):
      return self.words().encode([str(text) for text in given]).ids
    return self.net.book.ids[np.asarray(self.net.rows(jnp.asarray(given)))]


@functools.partial(jax.jit, static_argnums=0)
def _states(text: Any, params: Any, ids: Int[jax.Array, "P L"]) -> Float[jax.Array, "P L D"]:
  return text.states(params, ids)


def with_token(
  options: Options, vocabulary: Names, concept: data.Concept | None, words: Tokenizer
) -> New:
  """The names with the new tokens for that of the concept.

  Raises:
    ValueError: there is no concept, the token is not new, or the word has no tokens.
  """
  if concept is None:
    raise ValueError(
      f"config.prompts.token {options.token!r} stands for the name of what is to be forgotten, and "
      "no class or style is; set config.forget.label or config.forget.style"
    )
  names = list(vocabulary[concept.column])
  start = words.pieces(word := options.token_start or names[concept.value])
  if not start:
    raise ValueError(f"config.prompts.token_start is {word!r}, which has no tokens; use a word")
  names[concept.value] = " ".join(options.tokens)
  columns = [names if i == concept.column else own for i, own in enumerate(vocabulary)]
  return New(columns, words.with_tokens(options.tokens), start)


def write(vocabulary: Names, template: str, words: Tokenizer, start: tuple[int, ...] = ()) -> Book:
  """The book of all combinations of the conditions' names, in the order of models/text_to_image.py.

  Without a template the name of a class is its prompt. What does not fit the tokens is told. New
  tokens begin as the mean of `start`.

  Raises:
    ValueError: a template with other fields than the conditions, or none where there are several.
  """
  texts = [*prompts(vocabulary, template), ""]
  encoded = words.encode(texts)
  cut = [(text, rest) for text, rest in zip(texts, encoded.cut, strict=True) if rest]
  for text, rest in cut[:SHOWN]:
    logging.warning("%r is cut to %d tokens; left out is %r", text, words.length, rest)
  if len(cut) > SHOWN:
    logging.warning("%d prompts of %d are cut", len(cut), len(texts) - 1)
  return Book(encoded.ids, start)


def prompts(vocabulary: Names, template: str) -> list[str]:
  """The prompt of each combination of names; raises ValueError as `write`."""
  known = FIELDS[: len(vocabulary)]
  if not template and len(vocabulary) > 1:
    raise ValueError(
      "the data has classes and styles and config.prompts.template is empty; say how they make a "
      "prompt, like 'a {class} in {style} style'"
    )
  try:
    used = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
  except ValueError as error:
    raise ValueError(
      f"config.prompts.template is {template!r}, which is no template ({error}); a brace is {{{{"
    ) from error
  for name in sorted(used):
    errors.check_choice("field of config.prompts.template", name, known)
  if template and (missing := set(known) - used):
    raise ValueError(
      f"config.prompts.template is {template!r} and does not name {{{min(missing)}}}; prompts of "
      "different conditions would be the same, so name it"
    )
  made = template or "{class}"
  rows = itertools.product(*vocabulary)
  return [made.format(**dict(zip(known, row, strict=True))) for row in rows]
