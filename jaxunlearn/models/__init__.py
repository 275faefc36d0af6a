"""Networks: modules only, no loss and no device.

A noise predictor is a module with a frozen `Net`, which has `init(key) -> params` and
`apply(params, x, t, c) -> eps`, chosen by module name as methods are.
"""

import functools
from typing import Any

from jaxunlearn import errors
from jaxunlearn.inputs import plugins

# Modules that are no noise predictor of images under conditions.
HELPERS = (
  *("attention", "bilinear", "classifier", "clip", "clip_resnet", "convolution", "inception"),
  *("low_rank", "predictor", "product", "resnet", "text_unet", "unet_blocks", "vae", "vit"),
)
CHOICES = plugins.Group(__name__, "model", "Net", HELPERS)
names = CHOICES.names
_MADE: dict[Any, Any] = {}


def make(name: str, **fields: Any) -> Any:
  """`make('unet', **fields)` is `models.unet.Net(**fields)`; a wrong name lists the choices.

  Equal fields give the same object: jit tells bound methods (`net.apply`) apart by identity, so
  that samplers compiled for one run of a process serve the next.
  """
  net = errors.build(CHOICES.module(name).Net, f"model {name}", fields)
  return _MADE.setdefault(net, net)


@functools.cache
def shapes(net: Any) -> Any:
  """The shapes of a network's parameters: traced once, for all runs of a process."""
  import jax  # slow, and a list of names does without

  return jax.eval_shape(net.init, jax.random.key(0))
