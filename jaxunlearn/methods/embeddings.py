"""What conditions are in the parameters: tables of embeddings; and which one is to be forgotten.

A conditional network keeps the table of its i-th condition as `class_embedding_i/embedding`: one
row a value, the learned null last. A text-to-image network has one where it trains `prompts`: the
states of each prompt, `states/prompts` [*classes, L, D], a value's row being all prompts with it,
and `states/empty` the null's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import methods

Tree = Any


def concept_of(stream: methods.Whole) -> tuple[int, int, int]:
  """(column, value, other): which condition a stream's rows are to lose, and what they map to.

  Raises:
    ValueError: the stream maps its conditions to nothing, or to more than one value.
  """
  rows = stream.pick(64, 0)
  if rows.c is None or rows.to is None:
    raise ValueError(
      "the stream `a` maps no condition; set config.streams.a to forget with to=next, and "
      "config.forget.label or style"
    )
  c, to = (np.asarray(v).reshape(len(v), -1) for v in (rows.c, rows.to))
  columns = np.flatnonzero((c != to).any(axis=0))
  pairs = np.unique(np.stack([c[:, columns], to[:, columns]], axis=-1), axis=0)
  if pairs.shape != (1, 1, 2):
    raise ValueError(
      f"the stream `a` maps its conditions in {len(pairs)} ways; set config.streams.a to forget "
      "with to=next"
    )
  value, other = pairs[0, 0].tolist()
  return int(columns[0]), value, other


def table(params: Tree, column: int) -> jax.Array:
  """The embeddings [K + 1, ...] of a condition; raises ValueError where the model has none."""
  if "states" in params:
    rows = jnp.moveaxis(jnp.asarray(params["states"]["prompts"]), column, 0)
    empty = jnp.broadcast_to(params["states"]["empty"], (1, *rows.shape[1:]))
    return jnp.concatenate([rows, empty])
  name = f"class_embedding_{column}"
  if name in params:
    return jnp.asarray(params[name]["embedding"])
  if {"unet", "text_encoder", "token"} & params.keys():
    raise ValueError(
      "the prompts of this model are encoded from their words and are in no table; set "
      "config.trained.pattern to prompts"
    )
  raise ValueError(f"the model has no {name}; use a conditional model (config.model.classes)")


def with_table(params: Tree, column: int, embeddings: Any) -> Tree:
  """The parameters with another table; the states of the empty prompt stay."""
  if "states" in params:
    prompts = jnp.moveaxis(embeddings[:-1], 0, column)
    return {**params, "states": {**params["states"], "prompts": prompts}}
  name = f"class_embedding_{column}"
  return {**params, name: {**params[name], "embedding": embeddings}}
