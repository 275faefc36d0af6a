"""A small convolutional classifier, for the metrics that need class probabilities or features.

[conv 3x3 -> ReLU -> 2x2 max]  x 2  ->  conv 3x3 -> ReLU  ->  dense -> ReLU = features  ->  dense

Large pictures may be averaged over blocks first.
"""

import flax.linen as nn
import jax
from jaxtyping import Array, Float


class Classifier(nn.Module):
  """images [N, H, W, C] in [-1, 1], H and W multiples of 4 -> (logits, features)."""

  classes: int = 10
  widths: tuple[int, ...] = (16, 32, 64)
  features: int = 64
  shrink: int = 1  # pixels a side of the blocks that are averaged first
  dropout: float = 0.3  # before each of the two dense layers, while training

  @nn.compact
  def __call__(
    self, images: Float[Array, "N H W C"], train: bool = False
  ) -> tuple[Float[Array, "N K"], Float[Array, "N D"]]:
    drop = lambda x: nn.Dropout(self.dropout, deterministic=not train)(x)
    n, h, w, c = images.shape
    k = self.shrink
    x = images if k == 1 else images.reshape(n, h // k, k, w // k, k, c).mean(axis=(2, 4))
    for i, width in enumerate(self.widths):
      x = _halve(x) if i else x
      x = jax.nn.relu(nn.Conv(width, (3, 3), name=f"conv_{i}")(x))
    x = drop(x.reshape(len(x), -1))
    features = jax.nn.relu(nn.Dense(self.features, name="dense")(x))
    return nn.Dense(self.classes, name="head")(drop(features)), features


def _halve(x: Array) -> Array:
  """2x2 max pooling by a reshape, whose gradient XLA:CPU does faster than a window's."""
  n, h, w, c = x.shape
  return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
