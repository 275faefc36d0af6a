"""Weights of the networks that metrics use: which files, and their names in ours.

Inception   BatchNorm is that of inference, folded into the convolutions:
            BN(W * x) = (W s) * x + (beta - mean s),  s = gamma / sqrt(var + 1e-3), so that
            `Mixed_5b.branch1x1.{conv,bn}.*` give `Mixed_5b/branch1x1/{kernel,bias}`
SSCD        an index is joined by an underscore: `layer1.0.conv1.weight` is `layer1_0/conv1/kernel`
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from jaxunlearn.models.inception import SIZE, Inception
from jaxunlearn.models.resnet import Sscd
from jaxunlearn.weights import Published

INCEPTION = Published(
  what="FID's Inception",
  url=(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
  ),
  field="config.eval.inception_weights",
  sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
SSCD = Published(
  what="SSCD's ResNet-50",
  url="https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchvision.pt",
  field="config.eval.sscd_weights",
  sha256="",
)

_UNUSED = re.compile(r"^(fc|AuxLogits)\.|\.num_batches_tracked$")  # by Inception's features
_EPS = 1e-3  # of TensorFlow's batch norm
_COUNTER = "num_batches_tracked"  # of BatchNorm while it is trained
_TO_FLAX = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # OIHW -> HWIO, OI -> IO, by number of axes
_SSCD_NAMES = (
  (r"^backbone\.", ""),
  (r"^embeddings\.\d", "fc"),  # the head, where it is not the trunk's own last layer
  (r"\.(\d)\.", r"_\1."),
  (r"\.running_", "."),
)


def inception(state: Mapping[str, np.ndarray]) -> Any:
  """Inception's parameters from a state dict of PyTorch's names; its classifier is not used.

  Raises:
    ValueError: a weight is missing, left over, or of another shape.
  """
  used = {name: value for name, value in state.items() if not _UNUSED.search(name)}
  INCEPTION.check_shapes(used, inception_shapes())
  layers = {name.rsplit(".", 2)[0] for name in used}
  return traverse_util.unflatten_dict({name: _folded(used, name) for name in layers}, sep=".")


def sscd(state: Mapping[str, np.ndarray]) -> Any:
  """SSCD's parameters from a state dict of torchvision's names, with or without `backbone.`.

  Raises:
    ValueError: a weight is missing, left over, or of another shape.
  """
  params = {
    resnet_name(name, value): to_flax(value)
    for name, value in state.items()
    if not name.endswith(_COUNTER)
  }
  SSCD.check_shapes(params, frozenset(_shapes(Sscd(), 64).items()))
  return traverse_util.unflatten_dict(params, sep=".")


def inception_shapes() -> frozenset[tuple[str, tuple[int, ...]]]:
  """The names and shapes of the state dict that `inception` takes."""
  shapes = _shapes(Inception(), SIZE).items()
  kernels = {name[: -len(".kernel")]: shape for name, shape in shapes if len(shape) == 4}
  norms = ("weight", "bias", "running_mean", "running_var")
  convs = {(f"{name}.conv.weight", (o, i, h, w)) for name, (h, w, i, o) in kernels.items()}
  return frozenset(convs | {(f"{n}.bn.{k}", (s[-1],)) for n, s in kernels.items() for k in norms})


@functools.cache
def _shapes(net: nn.Module, size: int) -> dict[str, tuple[int, ...]]:
  """Name -> shape of the parameters of a network that takes images of three channels."""
  images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  params = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
  return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(params, sep=".").items()}


def _folded(state: Mapping[str, np.ndarray], layer: str) -> dict[str, np.ndarray]:
  norm = lambda name: state[f"{layer}.bn.{name}"].astype(np.float64)
  scale = norm("weight") / np.sqrt(norm("running_var") + _EPS)
  kernel = state[f"{layer}.conv.weight"].transpose(2, 3, 1, 0) * scale
  bias = norm("bias") - norm("running_mean") * scale
  return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}


def to_flax(value: np.ndarray) -> np.ndarray:
  """PyTorch's kernel or vector in our layout, float32."""
  return np.ascontiguousarray(value.transpose(_TO_FLAX[value.ndim]), np.float32)


def resnet_name(name: str, value: np.ndarray) -> str:
  """The name of a ResNet's array in ours."""
  for theirs, ours in _SSCD_NAMES:
    name = re.sub(theirs, ours, name)
  return re.sub("weight$", "scale" if value.ndim == 1 else "kernel", name)
