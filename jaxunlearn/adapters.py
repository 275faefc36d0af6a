"""What of a network is trained, beside what is frozen: by a run, an attack, a CDM's source.

    Trained   all of it; the parameters that a pattern finds; LoRA on the kernels among them; or
              what it adds to a text-to-image model: states of its prompts, or new tokens
    full      a whole network, started from the backbone
    subset    the parameters that a pattern finds, started from the backbone
    lora      x W + (alpha / rank) (x A) B for x W, of the layers that a pattern finds: low_rank.py
    prompts   deep prompts (Jia et al., 2022): tokens of its own for every block, or some per class

`Trained` is a run's (config.trained); the others are the compartments of a CDM, of which the first
three are a `Trained`. n adapters save storage and the traffic of weights, and are n evaluations all
the same. A kind is `init(key, net, backbone) -> params` and `apply(net, backbone, params, x, t, c)
-> eps`; stacked params are vmapped over. No gradient reaches the backbone of an adapter.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL, Diffusion
from jaxunlearn.inputs import ranges
from jaxunlearn.models import low_rank, text_to_image, uvit

Tree = Any
# The layers that LoRA is usually on: attention of a UNet, and all products of a U-ViT's blocks.
_ATTENTION = r"(^|/)to_(q|k|v|out_0)/"
_BLOCKS = r"(^|/)(in_blocks_\d+|mid_block|out_blocks_\d+)/(attn/(qkv|proj)|mlp/(fc1|fc2))/"
# Names of patterns, which find a parameter by its path: `unet/mid_block/.../attn2/to_q/kernel`.
PATTERNS = {
  "unet": r"^unet/",
  "attention": rf"{_ATTENTION}|{_BLOCKS}",
  "attn2": r"/attn2/",
  "attn2_kv": r"/attn2/to_[kv]/",
  "attn1": r"/attn1/",
  "not_attn2": r"^(?!.*(/attn2/|norm))",
}
# Names of what is added to a text-to-image model: free states of its prompts, or new tokens.
TEXT_PATTERNS = {"prompts": r"^states/", "token": r"^token$"}


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run trains.

  pattern ""   all parameters; else those whose path it finds: a name of PATTERNS, or a regex; or
               what a name of TEXT_PATTERNS adds
  rank r > 0   in the place of the kernels among them W + (alpha / r) A B, with A and B trained
  """

  pattern: str = ""
  rank: ranges.From0 = 0
  alpha: ranges.AtLeast0 = 8.0

  def __post_init__(self) -> None:
    ranges.check(self)
    try:
      re.compile(self._regex)
    except re.error as error:
      raise ValueError(
        f"pattern {self.pattern!r} is no regular expression ({error}); use one, or one of: "
        f"{', '.join(PATTERNS)}"
      ) from error
    if self.pattern in TEXT_PATTERNS and self.rank:
      raise ValueError(f"rank is {self.rank} and the pattern {self.pattern} has no kernels; use 0")

  @property
  def everything(self) -> bool:
    """Whether nothing is frozen."""
    return not self.pattern and not self.rank

  def extended(self, net: Any, whole: Tree) -> Tree:
    """The parameters with those that the pattern adds to a text-to-image network."""
    if isinstance(net, text_to_image.Net):
      return net.extended(whole, self.pattern)
    return whole

  def split(self, key: Array, whole: Tree) -> tuple[Tree, Tree]:
    """(trained, frozen) of the parameters that a run starts from.

    Raises:
      ValueError: the pattern finds no parameter, or under LoRA no kernel.
    """
    if self.everything:
      return whole, {}
    found = lambda path, leaf: re.search(self._regex, path) is not None
    if self.rank:
      kernels = part(whole, lambda path, leaf: path.endswith("/kernel") and found(path, leaf))
      if not kernels:
        raise ValueError(_nothing(self.pattern, "kernel", whole))
      return low_rank.init(key, kernels, self.rank), whole
    trained, frozen = part(whole, found), part(whole, lambda *at: not found(*at))
    if not trained:
      raise ValueError(_nothing(self.pattern, "parameter", whole))
    return trained, frozen

  def whole(self, frozen: Tree, params: Tree) -> Tree:
    """The parameters of the network; no gradient reaches the frozen ones."""
    frozen = jax.lax.stop_gradient(frozen)
    if self.rank:
      return low_rank.merged(frozen, params, self.alpha / self.rank)
    return joined(frozen, params)

  @property
  def _regex(self) -> str:
    return {**PATTERNS, **TEXT_PATTERNS}.get(self.pattern, self.pattern)


ALL = Trained()


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A network's noise predictor whose parameters are in two parts; equal ones are one object."""

  trained: Trained
  net: Any
  process: Diffusion

  def __call__(
    self, frozen: Tree, params: Tree, x_t: Array, t: Array, c: Any = None, **masks: Array
  ) -> Array:
    whole = self.trained.whole(frozen, params)
    return self.process.noise_of(self.net.apply(whole, x_t, t, c, **masks), x_t, t)

  def bound(self, frozen: Tree) -> Callable[..., Any]:
    """(params, x_t, t, c) -> eps, as methods take it."""
    if self.trained.everything:
      return self.process.predictor(self.net.apply)
    return functools.partial(self, frozen)


predictor = functools.cache(Predictor)


def part(tree: Tree, chosen: Callable[[str, Any], bool], path: str = "") -> Tree:
  """The leaves of a nested dict for which `chosen(path, leaf)`, in their places."""
  out = {}
  for name, value in tree.items():
    at = f"{path}/{name}" if path else name
    if isinstance(value, dict):
      if inner := part(value, chosen, at):
        out[name] = inner
    elif chosen(at, value):
      out[name] = value
  return out


def joined(a: Tree, b: Tree) -> Tree:
  """Two nested dicts as one; where both have a leaf, that of the second."""
  both = lambda x, y: joined(x, y) if isinstance(x, dict) and isinstance(y, dict) else y
  return {**a, **{name: both(a[name], y) if name in a else y for name, y in b.items()}}


def _nothing(pattern: str, what: str, whole: Tree) -> str:
  if pattern in TEXT_PATTERNS:
    return (
      f"config.trained.pattern {pattern!r} is of a text-to-image model and this is none; use "
      "another, or a model that reads prompts"
    )
  first = "/".join(key.key for key in jax.tree.leaves_with_path(whole)[0][0])
  return (
    f"pattern {pattern!r} finds no {what}; it is looked for in paths like "
    f"{first!r}, so use another, or one of: {', '.join(PATTERNS)}"
  )


class Compartment:
  """A base of the compartments that are a `Trained`."""

  trained: Trained

  def init(self, key: Array, net: Any, backbone: Tree | None) -> Tree:
    """What a source starts with; raises ValueError where it adapts nothing."""
    if self.trained.everything:
      return net.init(key) if backbone is None else jax.tree.map(jnp.array, backbone)
    _check_backbone(backbone)
    return self.trained.split(key, backbone)[0]

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
    kind, asked = self.trained, lambda whole: net.apply(whole, x, t, c, **masks)
    if kind.everything:
      return asked(params)
    if kind.rank:
      frozen = jax.lax.stop_gradient(backbone)
      return low_rank.beside(asked, frozen, params, kind.alpha / kind.rank)
    return asked(kind.whole(backbone, params))


@dataclasses.dataclass(frozen=True)
class Full(Compartment):
  """A whole network: the backbone, or a fresh one where that is None, trained further."""

  trained = ALL


@dataclasses.dataclass(frozen=True)
class Subset(Compartment):
  """The parameters that a pattern finds; the others are the backbone's."""

  pattern: str = "attn2"

  def __post_init__(self) -> None:
    if not self.pattern:
      raise ValueError("compartment subset has an empty pattern; give one, or use full")

  @property
  def trained(self) -> Trained:  # type: ignore[override]
    return Trained(self.pattern)


@dataclasses.dataclass(frozen=True)
class Lora(Compartment):
  """A product of `rank` beside each layer that a pattern finds; B is 0 at first."""

  rank: ranges.Count = 8
  alpha: ranges.AtLeast0 = 8.0
  pattern: str = "attention"

  def __post_init__(self) -> None:
    ranges.check(self)

  @property
  def trained(self) -> Trained:  # type: ignore[override]
    return Trained(self.pattern, self.rank, self.alpha)


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
    _check_prompts(net, backbone)
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


KINDS = {"full": Full, "subset": Subset, "lora": Lora, "prompts": Prompts}


def make(name: str, **fields: Any) -> Any:
  """`make('lora', rank=4)` is `Lora(rank=4)`; a wrong name or field lists the choices."""
  errors.check_choice("compartment", name, KINDS)
  return errors.build(KINDS[name], f"compartment {name}", fields)


def _check_backbone(backbone: Tree | None) -> None:
  if backbone is None:
    raise ValueError("an adapter without a backbone; set config.init_from to weights of the model")


def _check_prompts(net: Any, backbone: Tree | None) -> None:
  """Raises ValueError where there is nothing that takes prompts."""
  if not isinstance(net, uvit.Net):
    raise ValueError(
      f"prompts of {type(net).__module__}; only models.uvit takes some: use the compartment lora, "
      "subset or full"
    )
  _check_backbone(backbone)
