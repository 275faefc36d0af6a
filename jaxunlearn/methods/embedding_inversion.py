"""Embedding inversion, an attack: a free vector in place of the forgotten condition's embedding.

    minimise over v alone  E_{a, t, eps} ||eps - eps_theta(a_t, t, v)||^2      theta frozen

As textual inversion (Gal et al., 2023) and concept inversion (Pham et al., 2024) do with prompts:
what the weights can still draw, some vector may ask for. v starts where the condition is, and the
images `a` are of the concept. A pixel sum.

Of a text-to-image model v is the states [L, D] that the UNet reads in the place of the concept's
prompt, or of each prompt with it (config.trained.pattern = "prompts"): *state inversion*, which has
far more freedom than a word. token_inversion.py is textual inversion itself.

Deviations: textual inversion learns the vector of a new word in a prompt; here it stands in place
of a class's own, or of all states of a prompt.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.methods import embeddings


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  streams = ("a",)
  terms = ("a",)
  needs = ("c", "to")

  def prepare(self, apply, params, process, data, rng):
    """The mask that leaves one row of one table.

    Raises:
      ValueError: the model has no table of embeddings, or the stream maps no condition.
    """
    column, value, _ = embeddings.concept_of(data["a"])
    frozen = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    row = jnp.zeros(embeddings.table(params, column).shape, bool).at[value].set(True)
    return {"mask": embeddings.with_table(frozen, column, row)}

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_one(process, batch["a"], rng)

  def losses(self, eps_fn, process, draws, extras):
    return methods.one_denoising_loss(eps_fn, process, draws)

  def combine(self, grads, extras):
    return methods.masked(grads[0], extras["mask"]), {}
