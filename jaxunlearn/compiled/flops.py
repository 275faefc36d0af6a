"""FLOPs of a function, counted from what JAX traces: the same on every device.

Convolutions and matrix products alone, as a share of a device's peak counts them: 2 for each
product and its sum, padding included. XLA itself counts, before it compiles, on CPU alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(fn: Callable[..., Any], *arguments: Any) -> float:
  """FLOPs of fn(*arguments), which are arrays or their shapes.

  A loop of known length counts as often as it runs, any other once; of branches the largest counts,
  and where a platform chooses, that of those which no branch names: what a CPU makes again for its
  cache is no work of the function.
  """
  return _of(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _of(jaxpr: Jaxpr) -> float:
  return sum((_of_equation(equation) for equation in jaxpr.eqns), 0.0)


def _of_equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  sizes = [getattr(v.aval, "shape", ()) for v in (*equation.invars[:2], equation.outvars[0])]
  match name:
    case "dot_general":
      (summed, _), _ = params["dimension_numbers"]
      return 2.0 * math.prod(sizes[2]) * math.prod(sizes[0][axis] for axis in summed)
    case "conv_general_dilated":
      _, features, *space = params["dimension_numbers"].rhs_spec
      taps = math.prod(sizes[1][axis] for axis in (features, *space))
      return 2.0 * math.prod(sizes[2]) * taps / math.prod(params["lhs_dilation"])
    case "convolve":  # models/convolution.py
      return 2.0 * math.prod(sizes[2]) * math.prod(sizes[1][:3])
    case "product":  # models/product.py
      return 2.0 * math.prod(sizes[2]) * math.prod(sizes[1][:1])
    case "cond" if None in (platforms := params.get("branches_platforms") or ()):
      return _of(params["branches"][platforms.index(None)].jaxpr)
    case "cond":
      return max(_of(branch.jaxpr) for branch in params["branches"])
  inner = sum((_of(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)), 0.0)
  if name == "scan":
    return inner * params["length"]
  if name == "shard_map":
    return inner * params["mesh"].size
  return inner


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
  if isinstance(value, ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, Jaxpr):
    yield value
  elif isinstance(value, tuple | list):
    for one in value:
      yield from _jaxprs(one)
