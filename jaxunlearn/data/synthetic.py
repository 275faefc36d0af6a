"""Random pictures in place of a data set: for timing a config whose data is not here.

config.train.synthetic reads no data: N pictures of noise in the model's shape, every class and
style as often, of which the first class is what is to be forgotten.
"""

import numpy as np

from jaxunlearn import data

N = 512
FORGET = data.Forget(label="0")


def records(shape: tuple[int, int, int], classes: tuple[int, ...]) -> data.Records:
  """N records of uint8 noise [N, *shape], with the model's numbers of classes (and styles)."""
  names = lambda count: tuple(map(str, range(count)))
  counts = [max(count, 2) for count in classes] or [2]
  place = np.arange(N, dtype=np.int32)
  styled = len(counts) > 1
  return data.Records(
    ids=np.array([f"noise/{i:03d}" for i in range(N)]),
    image=np.random.default_rng(0).integers(0, 256, (N, *shape), np.uint8),
    label=place % counts[0],
    classes=names(counts[0]),
    style=place // counts[0] % counts[1] if styled else None,
    styles=names(counts[1]) if styled else (),
  )
