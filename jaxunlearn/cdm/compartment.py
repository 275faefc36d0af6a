"""What one source trains: a kind of adapters.py on a network, as a pair of functions."""

import dataclasses
import functools
from typing import Any

import jax

from jaxunlearn.diffusion import Diffusion

Tree = Any


@dataclasses.dataclass(frozen=True)
class Compartment:
  """Equal ones are one object (`make`): jit tells bound methods apart by identity."""

  kind: Any
  net: Any
  process: Diffusion

  def init(self, key: jax.Array, backbone: Tree) -> Tree:
    return self.kind.init(key, self.net, backbone)

  def apply(
    self, backbone: Tree, params: Tree, x: jax.Array, t: jax.Array, c: Any = None, **masks: Any
  ) -> jax.Array:
    """The noise that the source predicts."""
    return self.process.noise_of(
      self.kind.apply(self.net, backbone, params, x, t, c, **masks), x, t
    )


make = functools.cache(Compartment)
