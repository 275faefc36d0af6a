"""DiMUM against simulated relearning: memorise so that a few steps of an attack undo little.

    phi_0 = theta, phi_{k+1} = phi_k - inner_rate sign(grad L_a(phi_k)),   K steps
    L = L_r(theta) + lam L_m(theta) + mu L_m(phi_K)

L_r and L_m are DiMUM's; L_a is what a few-shot attack minimises, the denoising loss of images to
forget under their condition, and a sign step is the first of Adam's. The gradient of the last term
is taken at phi_K and given to theta, as if phi_K were theta moved by a constant (first-order MAML,
Finn et al., 2017). Not of the DiMUM paper: a stronger defence in the manner of tamper-resistant
safeguards (Tamirisa et al., 2024). Needs the images to forget. Pixel sums.

Deviations: this is no method of a paper.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  lam: ranges.AtLeast0 = 1.0
  mu: ranges.AtLeast0 = 1.0
  inner_steps: ranges.Count = 2  # K
  inner_rate: ranges.Above0 = 1e-3
  c_dropout: ranges.Share = 0.1

  streams = ("x", "alt", "a")
  terms = ("x", "alt", "meta")
  needs = ("c", "concept")
  whole_batch = True
  shared_forward = False

  @property
  def forwards(self):
    return 3 + self.inner_steps

  @property
  def backwards(self):
    return 3 + self.inner_steps

  def draw(self, process, batch, rng, extras, step):
    k_two, k_attack = jax.random.split(rng)
    attack = methods.draw_one(process, batch["a"], k_attack)
    two = methods.draw_two(process, batch["x"], batch["alt"], k_two, self.c_dropout)
    return two | {f"{name}_attack": value for name, value in attack.items()}

  def losses(self, eps_fn, process, draws, extras):
    """The last is L_m once more: `gradients` takes it at phi_K."""
    loss_x, loss_alt = methods.two_denoising_losses(eps_fn, process, draws)
    return (loss_x, loss_alt, self._memorise(eps_fn, process, draws)), {}

  def _memorise(self, eps_fn, process, draws):
    a, c, t, eps = (draws[name] for name in ("a", "c_a", "t_a", "eps_a"))
    return methods.denoising_loss(eps_fn, process, a, c, t, eps)

  def gradients(self, apply, params, process, draws, extras, needed=None):
    places = (params, params, self._relearned(apply, params, process, draws))
    return methods.grads_at(self, apply, places, process, draws, extras)

  def _relearned(self, apply, params, process, draws):
    """phi_K: the parameters after the simulated attack."""
    bound = lambda p: functools.partial(apply, p)
    x, c, t, eps = (draws[f"{k}_attack"] for k in ("a", "c", "t", "eps"))
    attack = jax.grad(lambda p: methods.denoising_loss(bound(p), process, x, c, t, eps))
    phi = params
    for rate in self._rates(draws):
      phi = jax.tree.map(lambda p, g, rate=rate: p - rate * jnp.sign(g), phi, attack(phi))
    return phi

  def _rates(self, draws):
    """Of each of the K steps."""
    del draws
    return (self.inner_rate,) * self.inner_steps

  def combine(self, grads, extras):
    return methods.weighted(grads, (1.0, self.lam, self.mu)), {}
