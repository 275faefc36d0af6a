"""Compartments: what is trained for one source, a whole network or little beside a frozen one.

    full      a network of its own, started from the backbone
    prompts   deep prompts (Jia et al., 2022): tokens of its own for every block, or some per class
    lora      W + (alpha / rank) A B on qkv, proj, fc1 and fc2 of every block (Hu et al., 2022)

Adapters save storage and the traffic of weights; n of them are n evaluations all the same. A kind
is `init(key, net, backbone) -> params` and `apply(net, backbone, params, x, t, c) -> eps`; stacked
params are vmapped over. No gradient reaches the backbone of an adapter.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL
from jaxunlearn.inputs import ranges
from jaxunlearn.models import uvit

Tree = Any
ADAPTED = {"attn": ("qkv", "proj"), "mlp": ("fc1", "fc2")}  # the layers of a block that LoRA moves


@dataclasses.dataclass(frozen=True)
class Full:
  """A whole network: the backbone, or a fresh one where that is None, trained further."""

  def init(self, key: Array, net: Any, backbone: Tree | None) -> Tree:
    return net.init(key) if backbone is None else jax.tree.map(jnp.array, backbone)

  def apply(
    self,
    net: Any,
    backbone: Tree | None,
    params: Tree,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Array | None = None,
    **masks: Array,  # a training step's, of a network with dropout
  ) -> Float[Array, "B H W C"]:
    del backbone
    return net.apply(params, x, t, c, **masks)


@dataclasses.dataclass(frozen=True)
class Prompts:
  """`tokens` for every block of a U-ViT; with `per_class`, that many for each class instead.

  The class is that of the row's condition, and null has tokens of its own. Of several conditions
  each has its tokens.
  """

  tokens: ranges.Count = 256
  per_class: ranges.From0 = 0

  def __post_init__(self) -> None:
    ranges.check(self)

  def init(self, key: Array, net: Any, backbone: Tree) -> Tree:
    """N(0, .02^2): `prompts` [blocks, tokens, D], or `prompts_i` [values + 1, ...], null last.

    Raises:
      ValueError: no U-ViT, no backbone, or tokens for each class of an unconditional network.
    """
    _check(net, backbone)
    draw = lambda key, *shape: 0.02 * jax.random.normal(key, (*shape, net.width))
    if not self.per_class:
      return {"prompts": draw(key, len(net.blocks), self.tokens)}
    if not net.classes:
      raise ValueError(
        f"{self.per_class} prompts per class of an unconditional network; use per_class=0"
      )
    return {
      f"prompts_{i}": draw(jax.random.fold_in(key, i), values + 1, len(net.blocks), self.per_class)
      for i, values in enumerate(net.classes)
    }

  def apply(
    self,
    net: Any,
    backbone: Tree,
    params: Tree,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Array | None = None,
  ) -> Float[Array, "B H W C"]:
    prompts = self._of_rows(params, net.conditions(x, c)) if self.per_class else params["prompts"]
    return net.apply(jax.lax.stop_gradient(backbone), x, t, c, prompts)

  def _of_rows(self, params: Tree, c: Array) -> Float[Array, "B blocks P D"]:
    """The prompts of each row's conditions [B, n], side by side."""
    tables = [jnp.asarray(params[f"prompts_{i}"]) for i in range(c.shape[1])]
    pick = lambda table, values: table[jnp.where(values == NULL, len(table) - 1, values)]
    return jnp.concatenate([pick(v, c[:, i]) for i, v in enumerate(tables)], axis=2)


@dataclasses.dataclass(frozen=True)
class Lora:
  """A product of `rank` beside each matrix of a U-ViT's blocks; B is 0 at first."""

  rank: ranges.Count = 8
  alpha: ranges.AtLeast0 = 8.0

  def __post_init__(self) -> None:
    ranges.check(self)

  def init(self, key: Array, net: Any, backbone: Tree) -> Tree:
    """`a` [I, rank] of N(0, 1 / I) and `b` [rank, O] of zeros, in the place of each kernel.

    Raises:
      ValueError: no U-ViT, or no backbone.
    """
    _check(net, backbone)
    params: Tree = {block: {part: {} for part in ADAPTED} for block in net.blocks}
    for n, (block, part, layer) in enumerate(_places(net)):
      i, o = backbone[block][part][layer]["kernel"].shape
      a = i**-0.5 * jax.random.normal(jax.random.fold_in(key, n), (i, self.rank))
      params[block][part][layer] = {"a": a, "b": jnp.zeros((self.rank, o))}
    return params

  def merge(self, backbone: Tree, params: Tree) -> Tree:
    """The backbone with W + (alpha / rank) A B for W."""
    if "a" in params:
      change = self.alpha / self.rank * params["a"] @ params["b"]
      return {**backbone, "kernel": backbone["kernel"] + change}
    return {**backbone, **{name: self.merge(backbone[name], own) for name, own in params.items()}}

  def apply(
    self,
    net: Any,
    backbone: Tree,
    params: Tree,
    x: Float[Array, "B H W C"],
    t: Real[Array, " B"],
    c: Array | None = None,
  ) -> Float[Array, "B H W C"]:
    return net.apply(self.merge(jax.lax.stop_gradient(backbone), params), x, t, c)


KINDS = {"full": Full, "prompts": Prompts, "lora": Lora}


def make(name: str, **fields: Any) -> Any:
  """`make('lora', rank=4)` is `Lora(rank=4)`; a wrong name or field lists the choices."""
  errors.check_choice("compartment", name, KINDS)
  return errors.build(KINDS[name], f"compartment {name}", fields)


def _places(net: uvit.Net) -> list[tuple[str, str, str]]:
  """(block, part, layer) of every kernel that LoRA moves."""
  return [(b, part, layer) for b in net.blocks for part in ADAPTED for layer in ADAPTED[part]]


def _check(net: Any, backbone: Tree | None) -> None:
  """Raises ValueError where there is nothing to adapt."""
  if not isinstance(net, uvit.Net):
    raise ValueError(
      f"an adapter of {type(net).__module__}; only models.uvit takes one: use the compartment full"
    )
  if backbone is None:
    raise ValueError("an adapter without a backbone; set config.init_from to weights of the model")
