"""What each source was told: its conditions, classes or prompts, and how many records have each.

Of a conditional model the weights of a composition are under the condition,

    w_i(x_t, t, c) = p(i | x_t, c) = p(i | c) p_{i,t}(x_t | c) / sum_j p(j | c) p_{j,t}(x_t | c)

where p(i | c) is the source's share of the records of c. A router knows p_{i,t}(x_t) alone, which
stands for p_{i,t}(x_t | c). A condition that no source has, and the empty one, leave the priors.

The counts of a source are kept in its part of the router: they are deleted and read with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxunlearn import data, streams
from jaxunlearn.models import text_to_image

KEYS = ("told", "told_count")


def part(net: Any, records: data.Records) -> dict[str, np.ndarray]:
  """`told` [K, L], each condition of the records once, and `told_count` [K]; {} where none is told.

  A condition is its classes, or the token ids of its prompt.
  """
  if not net.classes:
    return {}
  c = records.conditions if records.also is None else records.also.reshape(-1)
  rows, counts = np.unique(spelt(net, c), axis=0, return_counts=True)
  return {"told": rows.astype(np.int32), "told_count": counts.astype(np.int32)}


def spelt(net: Any, c: Int[np.ndarray, "B ..."]) -> Int[np.ndarray, "B L"]:
  """What the network is told under those conditions."""
  if isinstance(net, text_to_image.Net) and net.book is not None:
    return net.book.ids[np.asarray(net.rows(jnp.asarray(c)))]
  return c.reshape(len(c), -1)


def counts(net: Any, parts: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray | None:
  """[n, *classes]: the records that each source has of each condition of the network.

  None where the network is told nothing, or a part is of a release that did not count.
  """
  if not net.classes or not all(set(KEYS) <= one.keys() for one in parts):
    return None
  keys = [tuple(row) for row in spelt(net, streams.every(net.classes)).tolist()]
  out = []
  for one in parts:
    mine = dict(zip(map(tuple, one["told"].tolist()), one["told_count"].tolist(), strict=True))
    out.append([mine.get(key, 0) for key in keys])
  return np.array(out, np.int32).reshape(len(parts), *net.classes)
