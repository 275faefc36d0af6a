"""A neural router: a head on the middle tokens h of a frozen U-ViT (Golatkar et al., 2024).

    z = mean over tokens of block(h A + a),   f_i(x_t, t) = <z, w_i> + b_i
    min E_{i~lam, x0~D_i, t, eps} -log softmax_i(f + log lam)

with one pre-norm attention block. The minimum is lam_i e^{f_i} proportional to p(i | x_t), hence
f_i = log p_{i,t}(x_t) up to a constant of x_t: other priors, or fewer sources, need no new fit.

The head is fitted on all sources jointly: after a deletion it is fitted again. A part is a source's
own w_i and b_i and a copy of what all share.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Real
from tqdm import tqdm

from jaxunlearn import data, latents
from jaxunlearn.cdm import routers
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.inputs import ranges
from jaxunlearn.latents import cache
from jaxunlearn.models import uvit

Tree = Any
OWN = ("w", "b")  # what a source has to itself


class Trunk(nn.Module):
  """[B, L, D] tokens -> [B, W]."""

  width: int
  heads: int

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    h = nn.Dense(self.width, name="linear")(tokens)
    return uvit.Block(uvit.Net(width=self.width, heads=self.heads), name="block")(h).mean(axis=1)


class OnBackbone(NamedTuple):
  """A router on its backbone, a pytree whose leaves are the backbone's."""

  logits: Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Router:
  width: ranges.Count = 128
  heads: ranges.Count = 4
  steps: ranges.Count = 2000
  batch: ranges.Count = 128
  learning_rate: ranges.Above0 = 1e-3  # of Adam; falls to 0 as a cosine
  seed: ranges.Seed = 0

  independent: ClassVar[bool] = False

  def __post_init__(self) -> None:
    ranges.check(self)
    uvit.Net(width=self.width, heads=self.heads)  # raises where heads do not divide the width

  def fit(
    self,
    records: Mapping[str, data.Records],
    net: Any,
    backbone: Tree,
    process: Diffusion,
    codec: latents.Pixels | latents.Codec = latents.PIXELS,
  ) -> dict[str, dict[str, np.ndarray]]:
    """{source: its part}, a function of the records in their order and of the seed.

    Raises:
      ValueError: a source without records, no U-ViT, no backbone, or a fit that diverged.
    """
    routers.check(records)
    _check(net, backbone)
    counts = np.array([len(mine) for mine in records.values()])
    looks = [cache.look(codec, mine) for mine in records.values()]
    log_prior = jnp.log(jnp.asarray(counts / counts.sum(), jnp.float32))
    k_init, k_steps = jax.random.split(jax.random.key(self.seed))
    params = self._init(k_init, net, backbone, len(counts))
    state = params, self._adam.init(params)
    rng = np.random.default_rng(self.seed)
    for step in tqdm(range(self.steps), desc="fit router"):
      key = jax.random.fold_in(k_steps, step)
      batch = _batch(rng, looks, counts, self.batch)
      state, nll = _update(self, net, process, backbone, log_prior, state, key, *batch)
    if not np.isfinite(nll):
      raise ValueError(
        f"the cross-entropy of the router is {nll} after {self.steps} steps; lower its "
        f"learning_rate {self.learning_rate}"
      )
    return _parts(list(records), state[0])

  def on(self, net: Any, backbone: Tree, codec: Any = None) -> OnBackbone:
    """The router with its backbone bound; raises ValueError where there is none."""
    del codec
    _check(net, backbone)
    return OnBackbone(jax.tree_util.Partial(_logits(self, net), backbone))

  def seen(self, names: Sequence[str]) -> dict[str, str]:
    return {
      "head": f"all sources: {', '.join(names)}",
      "backbone": "the public set, and no source",
    }

  @property
  def _adam(self) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps))

  def _init(self, key: Array, net: Any, backbone: Tree, n: int) -> Tree:
    """A head that knows nothing: the posterior is the prior."""
    x, t = jnp.zeros((1, *net.image_shape)), jnp.zeros(1, jnp.int32)
    tokens = jax.eval_shape(net.features, backbone, x, t)
    shared = jax.jit(Trunk(self.width, self.heads).init)(key, jnp.zeros(tokens.shape))["params"]
    return {**shared, "w": jnp.zeros((n, self.width)), "b": jnp.zeros(n)}

  def head(self, params: Tree, tokens: Float[Array, "B L D"]) -> Float[Array, "B n"]:
    """f of the tokens."""
    shared = {key: value for key, value in params.items() if key not in OWN}
    z: Any = Trunk(self.width, self.heads).apply({"params": shared}, tokens)
    return jnp.einsum("bw,nw->bn", z, params["w"]) + params["b"]


def _check(net: Any, backbone: Tree) -> None:
  if not hasattr(net, "features"):
    raise ValueError(
      f"a neural router on {type(net).__module__}; only models.uvit has middle features: use the "
      "router kmeans"
    )
  if backbone is None:
    raise ValueError("a neural router without a backbone; set config.init_from to U-ViT weights")


def _batch(
  rng: np.random.Generator,
  looks: Sequence[Callable[[np.ndarray], np.ndarray]],
  counts: np.ndarray,
  size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """What the network sees of records drawn uniformly from all, and their sources [size]."""
  ends = np.cumsum(counts)
  pick = rng.integers(ends[-1], size=size)
  source = np.searchsorted(ends, pick, side="right")
  present, place = np.unique(source, return_inverse=True)
  parts = [looks[i](pick[source == i] - ends[i] + counts[i]) for i in present]
  seen = np.empty((size, *parts[0].shape[1:]), np.float32)
  for i, part in enumerate(parts):
    seen[place == i] = part
  return seen, source


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _update(
  router: Router,
  net: Any,
  process: Diffusion,
  backbone: Tree,
  log_prior: Array,
  state: tuple[Tree, Tree],
  key: Array,
  x: Array,
  source: Array,
) -> tuple[tuple[Tree, Tree], Array]:
  """A step of Adam on the cross-entropy."""
  k_t, k_eps = jax.random.split(key)
  t = process.sample_t(k_t, len(x))
  tokens = net.features(backbone, process.q_sample(x, t, jax.random.normal(k_eps, x.shape)), t)

  def nll(params: Tree) -> Array:
    logits = router.head(params, tokens) + log_prior
    return optax.softmax_cross_entropy_with_integer_labels(logits, source).mean()

  params, adam = state
  value, grads = jax.value_and_grad(nll)(params)
  updates, adam = router._adam.update(grads, adam)
  return (optax.apply_updates(params, updates), adam), value


def _parts(names: Sequence[str], params: Tree) -> dict[str, dict[str, np.ndarray]]:
  flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
  own = lambda i: {k: np.asarray(leaf[i]) if k in OWN else leaf for k, leaf in flat.items()}
  return {name: own(i) for i, name in enumerate(names)}


@functools.cache  # one function object for each: jit tells them apart by identity
def _logits(router: Router, net: Any) -> Callable[..., Array]:
  def logits(
    backbone: Tree,
    parts: routers.Part,
    process: Diffusion,
    x_t: Float[Array, "B H W C"],
    t: Real[Array, " B"],
  ) -> Float[Array, "B n"]:
    del process
    flat = {key: leaf if key in OWN else leaf[0] for key, leaf in parts.items()}
    params = traverse_util.unflatten_dict(flat, sep="/")
    return router.head(params, net.features(backbone, x_t, t))

  return logits
