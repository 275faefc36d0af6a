"""Concept Ablation: a concept's condition gives what an anchor's does (Kumari et al., ICCV 2023).

    model    L = E ||eps_theta(alt_t, t, c_u) - sg eps_theta(alt_t, t, c')||^2
    noise    L = E ||eps_theta(alt_t, t, c_u) - eps||^2
             + lam E ||eps - eps_theta(alt_t, t, c')||^2             regularisation, of either

alt are pictures of the anchor, as that model makes them or real ones, c' their own condition and
c_u the one to forget: the stream `alt` has `c = "forget"` (or a prompt that gives a memorised
picture, `c = "class:PROMPT"`) and `to = "own"`. The target is that of the current weights, without
gradient; there is no copy of the model. The paper trains to_k and to_v of the attention to text:
config.trained.pattern = "attn2_kv". Pixel sums, both.

Deviations:
  - The release takes means over pixels. Adam forgets the scale, which both terms share.
  - c' is never dropped, in either term.
"""

import dataclasses

import jax.numpy as jnp

from jaxunlearn import errors, methods
from jaxunlearn.inputs import ranges

FORMS = ("model", "noise")


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  form: str = "model"
  lam: ranges.AtLeast0 = 0.0  # of the regularisation; 0: none

  streams = ("alt",)
  terms = ("alt", "x")
  needs = ("c", "own")
  shared_forward = False

  def __post_init__(self):
    super().__post_init__()
    errors.check_choice("form of concept ablation", self.form, FORMS)

  @property
  def forwards(self):
    return 1 + (self.form == "model") + (self.lam > 0)

  @property
  def backwards(self):
    return 1 + (self.lam > 0)

  def draw(self, process, batch, rng, extras, step):
    alt = batch["alt"]
    noise = methods.draw_noise(process, alt.image.shape, rng)
    return {"alt": alt.image, "c": alt.c, "to": alt.to, **noise}

  def losses(self, eps_fn, process, draws, extras):
    alt, c, to, t, eps = (draws[name] for name in ("alt", "c", "to", "t", "eps"))
    alt_t = process.q_sample(alt, t, eps)
    target = extras["current"](alt_t, t, to) if self.form == "model" else eps
    loss = jnp.mean(methods.squared_error(target, eps_fn(alt_t, t, c)))
    kept = methods.denoising_loss(eps_fn, process, alt, to, t, eps) if self.lam else 0.0
    return (loss, jnp.asarray(kept, jnp.float32)), {}

  def combine(self, grads, extras):
    return methods.weighted(grads, (1.0, self.lam)), {}
