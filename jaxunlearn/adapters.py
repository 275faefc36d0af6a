"""What of a network is trained, beside what is frozen: by a run, an attack, a CDM's source.

    Trained   all of it; the parameters that a pattern finds; LoRA on the kernels among them; or
              what it adds to a text-to-image model: states of its prompts, or new tokens
    full      a whole network, started from the backbone
    prompts   deep prompts (Jia et al., 2022): tokens of its own for every block, or some per class
    lora      W + (alpha / rank) A B on qkv, proj, fc1 and fc2 of every block (Hu et al., 2022)

`Trained` is a run's (config.trained); the others are the compartments of a CDM. There n adapters
save storage and the traffic of weights, and are n evaluations all the same. A kind is
`init(key, net, backbone) -> params` and `apply(net, backbone, params, x, t, c) -> eps`; stacked
params are vmapped over. No gradient reaches the backbone of an adapter.
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
from jaxunlearn.models import text_to_image, uvit

Tree = Any
# Names of patterns, which find a parameter by its path: `unet/mid_block/.../attn2/to_q/kernel`.
PATTERNS = {
  "attn2": r"/attn2/",
  "attn2_kv": r"/attn2/to_[kv]/",
  "attn1": r"/attn1/",
  "not_attn2": r"^(?!.*(/attn2/|norm))",
}
# Names of what is added to a text-to-image model: free states of its prompts, or new tokens.
TEXT_PATTERNS = {"prompts": r"^states/", "token": r"^token$"}
_BLOCKS = r"(^|/)(in_blocks_\d+|mid_block|out_blocks_\d+)/(attn/(qkv|proj)|mlp/(fc1|fc2))/kernel$"


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
    if self.rank:
      return low_rank(key, whole, self._regex, self.rank), whole
    chosen = lambda path, leaf: re.search(self._regex, path) is not None
    trained, frozen = part(whole, chosen), part(whole, lambda *at: not chosen(*at))
    if not trained:
      raise ValueError(_nothing(self.pattern, "parameter", whole))
    return trained, frozen

  def whole(self, frozen: Tree, params: Tree) -> Tree:
    """The parameters of the network; no gradient reaches the frozen ones."""
    frozen = jax.lax.stop_gradient(frozen)
    return merged(frozen, params, self.alpha / self.rank) if self.rank else joined(frozen, params)

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


def low_rank(key: Array, whole: Tree, regex: str, rank: int) -> Tree:
  """`a` [..., I, rank] of N(0, 1 / fan in) and `b` [rank, O] of zeros, in the place of each kernel.

  Raises:
    ValueError: there is no kernel whose path is found.
  """
  chosen = lambda path, leaf: path.endswith("/kernel") and re.search(regex, path) is not None
  kernels = part(whole, chosen)
  if not kernels:
    raise ValueError(_nothing(regex, "kernel", whole))
  keys = iter(jax.random.split(key, len(jax.tree.leaves(kernels))))

  def product(kernel: Any) -> Tree:
    shape = kernel.shape
    fan_in = kernel.size // shape[-1]
    a = fan_in**-0.5 * jax.random.normal(next(keys), (*shape[:-1], rank))
    return {"a": a, "b": jnp.zeros((rank, shape[-1]))}

  return _kernels(kernels, product)


def _kernels(tree: Tree, made: Callable[[Any], Tree]) -> Tree:
  """Each {kernel: leaf} of a nested dict replaced by what is made of the leaf."""
  if "kernel" in tree:
    return made(tree["kernel"])
  return {name: _kernels(value, made) for name, value in tree.items()}


def merged(whole: Tree, params: Tree, scale: float) -> Tree:
  """The parameters with W + scale A B for W."""
  if "a" in params:
    return {**whole, "kernel": whole["kernel"] + scale * params["a"] @ params["b"]}
  return {**whole, **{name: merged(whole[name], own, scale) for name, own in params.items()}}


def _nothing(pattern: str, what: str, whole: Tree) -> str:
  if pattern in TEXT_PATTERNS:
    return (
      f"config.trained.pattern {pattern!r} is of a text-to-image model and this is none; use "
      "another, or a model that reads prompts"
    )
  first = "/".join(key.key for key in jax.tree.leaves_with_path(whole)[0][0])
  return (
    f"config.trained.pattern {pattern!r} finds no {what}; it is looked for in paths like "
    f"{first!r}, so use another, or one of: {', '.join(PATTERNS)}"
  )


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
    """As `low_rank`, of the kernels of blocks.

    Raises:
      ValueError: no U-ViT, or no backbone.
    """
    _check(net, backbone)
    return low_rank(key, backbone, _BLOCKS, self.rank)

  def merge(self, backbone: Tree, params: Tree) -> Tree:
    """The backbone with W + (alpha / rank) A B for W."""
    return merged(backbone, params, self.alpha / self.rank)

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


def _check(net: Any, backbone: Tree | None) -> None:
  """Raises ValueError where there is nothing to adapt."""
  if not isinstance(net, uvit.Net):
    raise ValueError(
      f"an adapter of {type(net).__module__}; only models.uvit takes one: use the compartment full"
    )
  if backbone is None:
    raise ValueError("an adapter without a backbone; set config.init_from to weights of the model")
