"""A text-to-image model of 4 x 4 latents and four prompts, with its records."""

import dataclasses
import functools

import numpy as np

from jaxunlearn import build, data, streams
from jaxunlearn.adapters import ALL
from jaxunlearn.mesh import sharding
from jaxunlearn.models import clip
from jaxunlearn.models.text_to_image import Book, Net
from tests import methods_test as toys
from tests import nets

TEXT = clip.Text(
  vocab_size=20,
  hidden_size=12,
  intermediate_size=24,
  num_hidden_layers=1,
  num_attention_heads=2,
  max_position_embeddings=6,
  end=19,
)
IDS = np.array([[0, i + 1, i + 2, 19, 19, 19] for i in range(4)] + [[0] + [19] * 5], np.int32)
RECORDS = data.Records(
  toys.RECORDS.ids,
  np.random.default_rng(2).integers(0, 256, (len(toys.LABEL), 4, 4, 4), dtype=np.uint8),
  toys.LABEL,
  tuple("pqrs"),
)


def net_of(book_row=None, start=(), tokens=0):
  """The network; `book_row` are the tokens of the prompt to forget."""
  ids = IDS.copy()
  if book_row is not None:
    ids[3] = book_row
  return Net(nets.TEXT_UNET, TEXT, (4,), Book(ids, start), tokens)


NET = net_of()
TOKEN_NET = net_of([0, 20, 5, 19, 19, 19], start=(4, 5), tokens=1)  # 20 is new


@functools.cache
def setup_of(method, trained=ALL, shape=(1, 1), net=NET, **fields):
  """A run of the method on latents and prompts, as methods_test.make_setup has them of pixels."""
  base = toys.make_setup(method, **fields)
  takes = {name: toys.TAKES.get(name, "retain") for name in base.method.streams}
  made = streams.make(RECORDS, toys.FORGET, takes, toys.ROWS, 0, base.concept, conditional=True)
  return dataclasses.replace(
    base,
    net=net,
    trained=trained,
    mesh=sharding.make_mesh(*shape),
    train=RECORDS,
    heldout=RECORDS,
    streams=made,
  )


def start(setup):
  return build.make_state(setup, nets.random_params(setup.net))
