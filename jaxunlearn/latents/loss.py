"""What an autoencoder of pictures is trained for (Rombach et al., 2022, appendix G).

    L = E [l1 |x - x'|_1 + l2 ||x - x'||^2 + kl KL(q(z|x) || N(0, I))],   z ~ q(z|x), x' = decode(z)

Sums over pixels and latents, a mean over rows. Their perceptual and adversarial terms are left out.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.inputs import ranges
from jaxunlearn.models import vae


@dataclasses.dataclass(frozen=True)
class Loss:
  """The weights of the terms, and what of a picture the first steps see."""

  l1: ranges.AtLeast0 = 1.0
  l2: ranges.AtLeast0 = 1.0
  kl: ranges.AtLeast0 = 1e-6
  crop: ranges.From0 = 0  # pixels a side; 0: whole pictures
  crop_share: ranges.Share = 0.75  # of the steps that see crops

  def __post_init__(self) -> None:
    ranges.check(self)

  def __call__(
    self, net: vae.Autoencoder, params: Any, x: Float[Array, "B H W C"], key: Array
  ) -> tuple[Array, dict[str, Array]]:
    """The loss, and its terms before they are weighted."""
    moments = net.encode(params, x)
    error = net.decode(params, net.sample(moments, key)) - x
    pixels = functools.partial(jnp.sum, axis=(1, 2, 3))
    variance = jnp.exp(moments.log_var)
    terms = {
      "l1": pixels(jnp.abs(error)),
      "l2": pixels(error**2),
      "kl": 0.5 * pixels(moments.mean**2 + variance - 1 - moments.log_var),
    }
    means = {name: jnp.mean(value) for name, value in terms.items()}
    total = sum(getattr(self, name) * value for name, value in means.items())
    return jnp.asarray(total), {"loss": jnp.asarray(total), **means}
