"""jaxunlearn: machine unlearning for diffusion models in JAX and Flax.

What other code may call stands here, and docs/library.md shows it. Each name is loaded when it is
first asked for: `import jaxunlearn` alone imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxunlearn.data import Concept, Records, to_model, to_pixels
  from jaxunlearn.diffusion import NULL, Diffusion, EpsFn
  from jaxunlearn.evals import Value
  from jaxunlearn.library import (
    Step,
    eps_fn,
    load_pipeline,
    load_pretrained,
    measure,
    method,
    over_devices,
    sample,
    save_pipeline,
    save_pretrained,
  )
  from jaxunlearn.methods import Objective, Rows

__version__ = "0.1.0"
__all__ = [
  "NULL",
  "Concept",
  "Diffusion",
  "EpsFn",
  "Objective",
  "Records",
  "Rows",
  "Step",
  "Value",
  "eps_fn",
  "load_pipeline",
  "load_pretrained",
  "measure",
  "method",
  "over_devices",
  "sample",
  "save_pipeline",
  "save_pretrained",
  "to_model",
  "to_pixels",
]

_MODULES = {
  "data": ("Concept", "Records", "to_model", "to_pixels"),
  "diffusion": ("NULL", "Diffusion", "EpsFn"),
  "evals": ("Value",),
  "library": (
    "Step",
    "eps_fn",
    "load_pipeline",
    "load_pretrained",
    "measure",
    "method",
    "over_devices",
    "sample",
    "save_pipeline",
    "save_pretrained",
  ),
  "methods": ("Objective", "Rows"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
  if name not in _MODULE_OF:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
