"""Routers: who is likely to have made x_t, log p_{i,t}(x_t) of each source; one module each.

A router is a frozen dataclass `Router` with

    independent   whether a source's part is fitted on its own records alone
    fit           {source: its records} -> {source: its part}, a dict of arrays
    on            (net, backbone, codec) -> what has `logits`, standing on what is frozen
    logits        (parts, process, x_t, t) -> [B, n], up to a constant that sources share
    seen          names of sources -> {part: what it has seen, in words}

where `parts` are the sources' parts stacked, so that a subset of the sources is a subset of rows.
The codec stands between pictures and what the network sees, x_t too (latents/__init__.py).
Priors are no part of it: w_i = softmax_i(logits_i + log lam_i).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import data, errors, latents
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.inputs import plugins

Part = Mapping[str, Any]
CHOICES = plugins.Group(__name__, "router", "Router")
names = CHOICES.names
_MADE: dict[Any, Any] = {}  # equal routers are one object, as models.make says why


@runtime_checkable
class Weigher(Protocol):
  """A router that lacks nothing but parts."""

  @property
  def logits(self) -> Callable[[Part, Diffusion, Array, Array], Array]: ...


@runtime_checkable
class Router(Protocol):
  """The contract; the fields of a router are its hyper-parameters."""

  independent: ClassVar[bool]

  def fit(
    self,
    records: Mapping[str, data.Records],
    net: Any,
    backbone: Any,
    process: Diffusion,
    codec: latents.Pixels | latents.Codec,
  ) -> dict[str, Part]: ...

  def on(self, net: Any, backbone: Any, codec: latents.Pixels | latents.Codec) -> Weigher: ...

  def seen(self, names: Sequence[str]) -> dict[str, str]: ...


def make(name: str, **fields: Any) -> Any:
  """routers/kmeans.py is named 'kmeans'; its fields are those of its `Router`."""
  router = errors.build(CHOICES.module(name).Router, f"router {name}", fields)
  return _MADE.setdefault(router, router)


def check(records: Mapping[str, data.Records]) -> None:
  """Raises ValueError where there is nothing to fit a router on."""
  if not records:
    raise ValueError("no source to fit a router on; give one or more")
  for name, mine in records.items():
    if not len(mine):
      raise ValueError(f"source {name!r} has no records to fit a router on; add some or delete it")


def levels(process: Diffusion, t: Array) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
  """gamma_t and sigma_t [B]; between two times log(sigma / gamma) is linear in t."""
  table = jnp.asarray(process.log_noise_to_signal(), jnp.float32)
  log_ratio = jnp.interp(jnp.asarray(t, jnp.float32), jnp.arange(len(table)), table)
  return jnp.sqrt(jax.nn.sigmoid(-2 * log_ratio)), jnp.sqrt(jax.nn.sigmoid(2 * log_ratio))
