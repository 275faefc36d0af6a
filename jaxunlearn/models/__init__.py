"""Networks: modules only, no loss and no device.

A noise predictor is a module with a frozen `Net`, which has `init(key) -> params` and
`apply(params, x, t, c) -> eps`, chosen by module name as methods are.
"""

import importlib
import pkgutil
from typing import Any

from jaxunlearn import errors

# Modules that are no noise predictor.
HELPERS = ("attention", "classifier", "clip", "inception", "predictor", "resnet", "vae")
_MADE: dict[Any, Any] = {}


def make(name: str, **fields: Any) -> Any:
  """`make('unet', **fields)` is `models.unet.Net(**fields)`; a wrong name lists the choices.

  Equal fields give the same object: jit tells bound methods (`net.apply`) apart by identity, so
  that samplers compiled for one run of a process serve the next.
  """
  errors.check_choice("model", name, names())
  module = importlib.import_module(f"{__name__}.{name}")
  net = errors.build(module.Net, f"model {name}", fields)
  return _MADE.setdefault(net, net)


def names() -> list[str]:
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS)
