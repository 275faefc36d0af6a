"""Pictures <-> latents: what stands between the data and a network that sees no pixels."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxunlearn.models import vae

BATCH = 4  # pictures decoded at a time: one of 512 px takes a gigabyte


@dataclasses.dataclass(frozen=True)
class Codec:
  """An autoencoder with its parameters."""

  net: vae.Autoencoder
  params: Any

  def decode(
    self, z: Float[np.ndarray, "N h w z"], batch: int = BATCH
  ) -> Float[np.ndarray, "N H W C"]:
    """The pictures of latents as the diffusion model makes them, in [-1, 1] but for overshoot."""
    parts = [_decode(self.net, self.params, z[i : i + batch]) for i in range(0, len(z), batch)]
    return np.concatenate([np.asarray(part) for part in parts])


_decode = jax.jit(lambda net, params, z: net.decode(params, z), static_argnums=0)
