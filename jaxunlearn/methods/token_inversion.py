"""Token inversion, an attack: the embedding of a new word in the place of the forgotten name.

    minimise over v alone  E_{a, t, eps} ||eps - eps_theta(a_t, t, text(.. v ..))||^2

Textual inversion (Gal et al., 2023), as the attack on erased concepts of Pham et al. (CCE, 2024): v
is one row (or config.prompts.token_count rows) of the table of tokens, behind the vocabulary; UNet,
text encoder and all other rows are frozen, and the gradient goes through the text encoder. The
images `a` are of the concept, each under its prompt with the word in the place of the name. Set

    config.trained.pattern = "token"
    config.prompts         = {"token": "<it>", "token_start": "art"}
    config.forget.label    the name that the word replaces
    config.optimizer       learning_rate 5e-3, weight_decay 1e-2, schedule constant, clip None

CCE starts v at "art", and takes 5,000 steps of AdamW at 5e-3 times the rows of a step (4 at a time,
4 times added), on 25 images, in half precision.

Deviations: a prompt is that of config.prompts.template, or the word alone, where CCE draws one of
its list of templates at each step; the rate is not multiplied by the rows. A pixel sum, so that the
gradient is larger than that of a mean by the size of a latent: Adam does not see it.
"""

import dataclasses

from jaxunlearn import methods


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  streams = ("a",)
  terms = ("a",)
  needs = ("c", "concept", "token")

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_one(process, batch["a"], rng)

  def losses(self, eps_fn, process, draws, extras):
    return methods.one_denoising_loss(eps_fn, process, draws)
