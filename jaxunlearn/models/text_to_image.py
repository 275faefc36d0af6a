"""A text-to-image model as a noise predictor of numbered conditions: UNet and text encoder.

A *prompt book* numbers the prompts that a model is asked for: the last row is the empty prompt, to
which the condition NULL leads. Of several conditions (an object, a style) each combination has its
row. The parameters are

    unet            text_unet.Net's
    text_encoder    clip.Text's, which encodes `book`: the tokens of each row
    token           [n, D], where a run adds it: embeddings of new tokens, behind the vocabulary
    prefix          [k, V], where there are some: of k tokens before each prompt but the empty one,
                    the weights of all tokens; the heaviest is taken, and the gradient is that of
                    the weighted sum (straight through)
    states          in the place of all of these: the book encoded once, a table that can be trained
      prompts       [*classes, L, D], of each combination
      empty         [L, D]
  encoded         the same, of a run that leaves text_encoder alone: what it need not compute anew
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL
from jaxunlearn.inputs import ranges
from jaxunlearn.models import clip, text_unet

ADDED = {"prompts": "states", "token": "token"}  # config.trained.pattern -> what it adds
ENCODED_ONCE = "encoded"
ENCODED = 64  # prompts at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Book:
  """The token ids of each prompt, the empty one last; equal ones are equal, as jit needs."""

  ids: Int[np.ndarray, "P L"]
  start: tuple[int, ...] = ()  # the tokens whose mean new ones begin as

  def __eq__(self, other: object) -> bool:
    same = isinstance(other, Book) and np.array_equal(self.ids, other.ids)
    return same and self.start == other.start  # type: ignore[attr-defined]

  def __hash__(self) -> int:
    return hash((self.ids.shape, self.ids.tobytes(), self.start))


@dataclasses.dataclass(frozen=True)
class Net:
  """Conditions are int32 [B] or [B, n], of `classes` values each; or the states of texts."""

  unet: Any = dataclasses.field(default_factory=text_unet.Net)  # a text_unet.Net, or its fields
  text: Any = dataclasses.field(default_factory=clip.Text)  # a clip.Text, or its fields
  classes: Sequence[ranges.Count] = ()
  book: Book | None = dataclasses.field(default=None, metadata={"of": "data"})  # no config's
  tokens: ranges.From0 = 0  # new ones, which config.prompts.token names

  def __post_init__(self) -> None:
    for name, kind in (("unet", text_unet.Net), ("text", clip.Text)):
      if not isinstance(given := getattr(self, name), kind):
        object.__setattr__(self, name, errors.build(kind, f"model.{name}", dict(given)))
    object.__setattr__(self, "classes", tuple(self.classes))
    ranges.check(self)

  @property
  def dtype(self) -> str:
    """Of the UNet's computations."""
    return self.unet.dtype

  @property
  def dropout(self) -> float:
    """None: Stable Diffusion trains without."""
    return 0.0

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Of a latent."""
    return self.unet.image_shape

  @property
  def prompts(self) -> int:
    """How many there are, without the empty one."""
    return math.prod(self.classes)

  def init(self, key: Array) -> Any:
    """Random parameters of both networks, without a book."""
    k_unet, k_text = jax.random.split(key)
    return {"unet": self.unet.init(k_unet), "text_encoder": self.text.init(k_text)}

  def apply(
    self,
    params: Any,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Array | np.ndarray | None = None,
  ) -> Float[Array, "B H W C"]:
    """What the network predicts of the latent x at the times t; None is the empty prompt."""
    c = jnp.full((len(x), len(self.classes)), NULL) if c is None else jnp.asarray(c)
    states = c if jnp.issubdtype(c.dtype, jnp.floating) else self.states(params, c)
    return self.unet.apply(params["unet"], x, t, states)

  def states(self, params: Any, c: Int[Array, "B ..."]) -> Float[Array, "B L D"]:
    """The states of the prompts of those conditions."""
    if table := params.get("states", params.get(ENCODED_ONCE)):
      columns = self._columns(c)
      found = jnp.asarray(table["prompts"])[tuple(columns.T)]
      null = (columns == NULL).any(axis=1)[:, None, None]
      return jnp.where(null, table["empty"], found)
    if self.book is None:
      raise ValueError("this network has no prompts; give it a book, or the states of texts")
    rows = self.rows(c)
    ids = jnp.asarray(self.book.ids)[rows]
    if "prefix" in params:
      return self._prefixed(params, ids, (rows == self.prompts)[:, None])
    return self.encode(params, ids)

  def encode(self, params: Any, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """The states of tokens, new ones among them."""
    if "token" not in params:
      return self.text.states(params["text_encoder"], ids)
    new = params["token"]
    return more_tokens(self.text, len(new)).states(with_rows(params["text_encoder"], new), ids)

  def extended(self, params: Any, pattern: str) -> Any:
    """The parameters with what a run of that config.trained.pattern adds, if it is not there yet.

    prompts   `states`, all prompts encoded
    token     `token`, each new one the mean of the embeddings that the book says

    Without a book there are zeros in their place, for a checkpoint to fill.
    """
    name = ADDED.get(pattern, "")
    if not name or name in params:
      return params
    return {**params, name: self._states(params) if name == "states" else self._tokens(params)}

  def encoded(self, params: Any) -> Any:
    """`encoded` of a run that trains the UNet alone; {} where it would be larger than the encoder,
    or where the prompts' states are not the text encoder's.
    """
    if self.book is None or params.keys() != {"unet", "text_encoder"}:
      return {}
    size = self.book.ids.size * self.text.hidden_size
    if size > sum(leaf.size for leaf in jax.tree.leaves(params["text_encoder"])):
      return {}
    return {ENCODED_ONCE: self._states(params)}

  def _states(self, params: Any) -> Any:
    width = (self.text.max_position_embeddings, self.text.hidden_size)
    if self.book is None:
      states = np.zeros((self.prompts + 1, *width), np.float32)
    else:
      states = _encoded(self, {k: v for k, v in params.items() if k != "unet"})
    return {"prompts": states[:-1].reshape(*self.classes, *width), "empty": states[-1]}

  def _tokens(self, params: Any) -> Any:
    if self.book is None:
      return np.zeros((self.tokens, self.text.hidden_size), np.float32)
    table = jnp.asarray(params["text_encoder"]["embeddings"]["token_embedding"]["embedding"])
    return jnp.tile(table[jnp.array(self.book.start)].mean(axis=0), (self.tokens, 1))

  def _prefixed(
    self, params: Any, ids: Int[Array, "B L"], empty: Bool[Array, "B 1"]
  ) -> Float[Array, "B L D"]:
    """The states of prompts with the prefix before them; what does not fit is cut at the end."""
    weights, end = params["prefix"], self.text.end
    k, length = len(weights), ids.shape[1]
    hard = jax.nn.one_hot(jnp.argmax(weights, axis=1), weights.shape[1])
    through = hard + weights - jax.lax.stop_gradient(weights)
    table = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
    moved = jnp.concatenate([ids[:, : 1 + k], ids[:, 1 : length - k]], axis=1)
    whole = (moved[:, 1 + k :] == end).any(axis=1)
    moved = moved.at[:, -1].set(jnp.where(whole, moved[:, -1], end))
    ids = jnp.where(empty, ids, moved)
    after = jnp.where(empty[..., None], table[ids[:, 1 : 1 + k]], (through @ table)[None])
    return self.text.states(params["text_encoder"], ids, after)

  def rows(self, c: Int[Array, "B ..."]) -> Int[Array, " B"]:
    """Their rows of the book; the last is the empty prompt, which any NULL leads to."""
    columns = self._columns(c)
    row = jnp.zeros(len(columns), jnp.int32)
    for i, count in enumerate(self.classes):
      row = row * count + columns[:, i]
    return jnp.where((columns == NULL).any(axis=1), self.prompts, row)

  def _columns(self, c: Int[Array, "B ..."]) -> Int[Array, "B n"]:
    return jnp.asarray(c).reshape(len(c), len(self.classes))


@functools.partial(jax.jit, static_argnums=0)
def _encoded(net: Net, params: Any) -> Float[Array, "P L D"]:
  """The states of every prompt of the book, some at a time."""
  assert net.book is not None
  encode = lambda row: net.encode(params, row[None])[0]
  return jax.lax.map(encode, jnp.asarray(net.book.ids), batch_size=ENCODED)


def more_tokens(text: clip.Text, count: int) -> clip.Text:
  """The text encoder of a vocabulary that is larger by so many."""
  return dataclasses.replace(text, vocab_size=text.vocab_size + count)


def with_rows(params: Any, new: Float[Array, "n D"]) -> Any:
  """The parameters of a text encoder with more rows in the table of tokens."""
  own = params["embeddings"]
  table = jnp.concatenate([jnp.asarray(own["token_embedding"]["embedding"]), jnp.asarray(new)])
  return {**params, "embeddings": {**own, "token_embedding": {"embedding": table}}}


def combinations(classes: tuple[int, ...]) -> Int[np.ndarray, "P n"]:
  """The conditions of each row of the book but the last, in order."""
  return np.stack(np.unravel_index(np.arange(math.prod(classes)), classes), -1).astype(np.int32)


def with_prefix(params: Any, section: Mapping[str, Any] | None, net: Any) -> Any:
  """The parameters with the tokens before each prompt that config.prompts asks for, all as likely.

  Args:
    section: config.prompts; None for a model that reads none.

  Raises:
    ValueError: the network takes none, or has no room for so many.
  """
  count = section.get("prefix", 0) if section else 0
  if not count:
    return params
  if not isinstance(net, Net):
    raise ValueError(
      f"config.prompts.prefix is {count} and the model reads no prompts; use 0, or a text-to-image "
      "model"
    )
  room = net.text.max_position_embeddings - 3  # the start, the end and a token between
  if count > room:
    raise ValueError(
      f"config.prompts.prefix is {count} and a prompt has room for {room}; use at most that"
    )
  tokens = net.text.vocab_size
  return {**params, "prefix": np.full((count, tokens), 1 / tokens, np.float32)}
