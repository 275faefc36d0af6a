"""What every classifier of samples says: probabilities, and whether a sample is as it is called."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxunlearn import errors


class Judge:
  """A base of classifiers: what follows from their logits, `_forward(images)[0]`."""

  recipe: Any  # name, classes

  def probabilities(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N K"]:
    """The class probabilities, float64, each row of sum 1."""
    logits = self._forward(images)[0].astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)

  def agrees(self, images: Float[np.ndarray, "N H W C"], names: Sequence[str]) -> np.ndarray:
    """[N] bool: whether the likeliest class is the one named; ValueError for one it knows not."""
    for name in sorted(set(names)):
      errors.check_choice(f"class of the classifier {self.recipe.name}", name, self.recipe.classes)
    places = np.array([self.recipe.classes.index(name) for name in names], int)
    return self.probabilities(images).argmax(axis=1) == places

  def _forward(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features."""
    raise NotImplementedError
