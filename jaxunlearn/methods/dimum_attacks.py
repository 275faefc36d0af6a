"""DiMUM against several attacks: as `dimum_meta`, with an attack drawn anew at each step.

    k ~ U{1, ..., K},  rate = inner_rate spread^u,  u ~ U(-1, 1),  data ~ {to forget, kept}
    phi_0 = theta, phi_{j+1} = phi_j - rate sign(grad L(phi_j; data)),   k steps
    L = L_r(theta) + lam L_m(theta) + mu L_m(phi_k)

Half of the steps simulate a few-shot attack, on images to forget under their condition, the others
DiMRA, on what is kept. A defence against one attack of one length says little about another: steps,
rates and data are sampled as in tamper-resistant safeguards (Tamirisa et al., 2024). Pixel sums.

Deviations: this is no method of a paper.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import methods
from jaxunlearn.inputs import ranges
from jaxunlearn.methods import dimum_meta


@dataclasses.dataclass(frozen=True)
class Method(dimum_meta.Method):
  inner_steps: ranges.Count = 4  # K, the most
  spread: ranges.AtLeast1 = 4.0  # of the rates: from inner_rate / spread to inner_rate * spread

  def draw(self, process, batch, rng, extras, step):
    draws = super().draw(process, batch, rng, extras, step)
    # Not 0 or 1: those are keys of dimum_meta.
    k_x, k_data, k_steps, k_rate = (jax.random.fold_in(rng, i) for i in range(2, 6))
    forgotten = jax.random.bernoulli(k_data)
    kept = {f"{name}_attack": v for name, v in methods.draw_one(process, batch["x"], k_x).items()}
    shown = {name: jnp.where(forgotten, draws[name], v) for name, v in kept.items()}
    steps = jax.random.randint(k_steps, (), 1, self.inner_steps + 1)
    rate = self.inner_rate * self.spread ** jax.random.uniform(k_rate, (), minval=-1, maxval=1)
    rows = lambda value: jnp.broadcast_to(value, len(draws["x"]))
    return draws | shown | {"steps": rows(steps), "rate": rows(rate)}

  def _rates(self, draws):
    """0 of the steps after the k-th: those change nothing."""
    steps, rate = draws["steps"][0], draws["rate"][0]
    return [jnp.where(j < steps, rate, 0) for j in range(self.inner_steps)]
