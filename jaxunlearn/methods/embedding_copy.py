"""The trivial control: the embedding of the condition to forget becomes another condition's.

Nothing is trained (train.steps = 0) and nothing forgotten, yet the concept is never shown again,
and relearning what is kept brings nothing back: a measure that this passes proves little. The other
condition is what the stream `a` maps to (`to = "next"`). Of a text-to-image model it is the states
of the prompts that are copied (config.trained.pattern = "prompts").

Deviations: none; this is a control, and no method of a paper.
"""

import dataclasses

from jaxunlearn import methods
from jaxunlearn.methods import embeddings


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  streams = ("a",)
  terms = ("a",)
  needs = ("c", "to")

  def start(self, params, data, rng):
    """Raises ValueError where the model has no table of embeddings, or of prompts."""
    column, value, other = embeddings.concept_of(data["a"])
    table = embeddings.table(params, column)
    return embeddings.with_table(params, column, table.at[value].set(table[other]))

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_one(process, batch["a"], rng)

  def losses(self, eps_fn, process, draws, extras):
    return methods.one_denoising_loss(eps_fn, process, draws)
