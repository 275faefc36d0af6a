"""Products of low rank beside the layers of a network (LoRA, Hu et al., 2022).

    x W + s (x A) B   for   x W,       A [..., I, r], B [r, O]

`beside` adds them to what the layers give, so that no W + s A B is made: under `jax.vmap` over n
stacked pairs (A, B) the n x W are one product with the one W, all rows below each other, and what
no pair has touched yet is computed once for all n. Its backward pass makes no gradient of W.
"""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

Tree = Any
Path = tuple[str, ...]


def init(key: Array, kernels: Tree, rank: int) -> Tree:
  """`a` [..., I, rank] of N(0, 1 / fan in) and `b` [rank, O] of zeros, in the place of each kernel.

  `kernels` is a nested dict with leaves {kernel: array}.
  """
  keys = iter(jax.random.split(key, len(jax.tree.leaves(kernels))))

  def product(kernel: Any) -> Tree:
    shape = kernel.shape
    fan_in = kernel.size // shape[-1]
    a = fan_in**-0.5 * jax.random.normal(next(keys), (*shape[:-1], rank))
    return {"a": a, "b": jnp.zeros((rank, shape[-1]))}

  def made(tree: Tree) -> Tree:
    if "kernel" in tree:
      return product(tree["kernel"])
    return {name: made(value) for name, value in tree.items()}

  return made(kernels)


def merged(whole: Tree, params: Tree, scale: float) -> Tree:
  """The parameters with W + scale A B for W."""
  if "a" in params:
    return {**whole, "kernel": whole["kernel"] + scale * params["a"] @ params["b"]}
  return {**whole, **{name: merged(whole[name], own, scale) for name, own in params.items()}}


def beside(apply: Callable[[Tree], Array], whole: Tree, params: Tree, scale: float) -> Array:
  """apply(merged(whole, params, scale)) of a Flax network, without merging.

  Kernels of more than one pixel are merged. Where some product meets no layer, since the network
  is no Flax module or does not call it, all are.
  """
  own = dict(pairs(params))
  wide = {path: pair for path, pair in own.items() if _pixels(pair) > 1}
  own = {path: pair for path, pair in own.items() if path not in wide}
  met: set[Path] = set()

  def added(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    y = call(*args, **kwargs)
    path = _found(own, params, context.module.path) if context.method_name == "__call__" else None
    if path is None:
      return y
    met.add(path)
    a, b = own[path]["a"], own[path]["b"]
    x = args[0].astype(y.dtype)
    return y + scale * (x @ a.reshape(a.shape[-2:]).astype(y.dtype)) @ b.astype(y.dtype)

  with nn.intercept_methods(added):
    out = apply(merged(whole, nested(wide), scale))
  return out if met == own.keys() else apply(merged(whole, params, scale))


def pairs(tree: Tree, path: Path = ()) -> Iterator[tuple[Path, Tree]]:
  """(path, {a, b}) of each product."""
  if "a" in tree:
    yield path, tree
    return
  for name, value in tree.items():
    yield from pairs(value, (*path, name))


def nested(flat: dict[Path, Tree]) -> Tree:
  """The inverse of `pairs`."""
  out: Tree = {}
  for path, pair in flat.items():
    inner = out
    for name in path[:-1]:
      inner = inner.setdefault(name, {})
    inner[path[-1]] = pair
  return out


def _found(own: dict[Path, Tree], params: Tree, path: Path) -> Path | None:
  """The pair of a layer: by its path in its module, which may be one of several of the network."""
  return next((at for at in (path, *((top, *path) for top in params)) if at in own), None)


def _pixels(pair: Tree) -> int:
  """Of a kernel: 1 of a matrix."""
  return int(pair["a"].size // (pair["a"].shape[-2] * pair["a"].shape[-1]))
