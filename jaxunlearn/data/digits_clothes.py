"""Digits and clothes: MNIST and Fashion-MNIST in one set of twenty classes, 28 px, grey.

Ids are `mnist/00001` and `fashion/00001`, so that the domain of a record is its folder. A share of
them, at random, is the public part: a model that all may build on is trained on it alone.
"""

import dataclasses

import numpy as np

from jaxunlearn import data, errors
from jaxunlearn.data import fashion, mnist_tshirt
from jaxunlearn.inputs import ranges

PARTS = ("all", "public", "private")


@dataclasses.dataclass(frozen=True)
class Source:
  digits: ranges.Count = 9000  # training digits, the first ones; the rest are held out
  heldout: ranges.OneIn = 10  # one piece of clothing in this many of each class is held out
  public: ranges.Share = 0.2  # the share of the training records that is public
  part: str = "all"  # of the training records: all, public or private

  def load(self) -> tuple[data.Records, data.Records]:
    errors.check_choice("part of digits and clothes", self.part, PARTS)
    digits = mnist_tshirt.Source(self.digits, share=0.0).load()
    clothes = fashion.Source(self.heldout).load()
    train, heldout = map(data.concatenate, zip(digits, clothes, strict=True))
    order = np.random.default_rng(0).permutation(len(train))
    public, private = np.split(order, [round(self.public * len(train))])
    index = {"all": order, "public": public, "private": private}[self.part]
    return train.take(np.sort(index)), heldout
