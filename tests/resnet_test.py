"""SSCD's network against torchvision's ResNet-50, and GeM against its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from jaxunlearn import weights
from jaxunlearn.models import resnet
from jaxunlearn.weights import extractors
from tests import random_resnet, torchvision_ops


class GeM(nn.Module):
  def forward(self, x):
    return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class Reference(nn.Module):
  """torchvision's trunk with GeM before its linear layer, then L2 normalisation."""

  def __init__(self):
    super().__init__()
    self.backbone = torchvision_ops.load().models.resnet50(num_classes=512)
    self.backbone.avgpool = GeM()

  def forward(self, x):
    return nn.functional.normalize(self.backbone(x))


@functools.cache
def reference():
  model = Reference().eval()
  state = {name: torch.from_numpy(value) for name, value in random_resnet.state_dict().items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  assert not unexpected
  assert all(name.endswith("num_batches_tracked") for name in missing)
  return model


@functools.cache
def params():
  return extractors.sscd(weights.read(random_resnet.weights()))


def images(n, height, width):
  return np.random.default_rng(1).normal(size=(n, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (75, 50), (28, 28)])
def test_descriptors_are_torchvisions_with_gem(height, width):
  x = images(2, height, width)
  with torch.inference_mode():
    want = reference()(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
  got = np.asarray(resnet.describe(params(), x))
  assert np.abs(want[0] - want[1]).max() > 1e-2
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_gem_of_a_constant_is_the_constant_and_of_p_1_the_mean():
  constant = jnp.broadcast_to(jnp.array([0.5, 1.0, 3.0]), (2, 4, 5, 3))
  np.testing.assert_allclose(resnet.gem(constant), constant[:, 0, 0], rtol=1e-5)
  x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 4, 5, 3)), jnp.float32)
  np.testing.assert_allclose(resnet.gem(x, 1.0), x.mean((1, 2)), rtol=1e-6)
  np.testing.assert_allclose(resnet.gem(x, 60.0), x.max((1, 2)), rtol=0.06)
  np.testing.assert_allclose(resnet.gem(-x), 1e-6, rtol=1e-4)


def test_a_file_as_published_is_read_whole(tmp_path, monkeypatch):
  """53 convolutions, 53 norms of four arrays each, the head's two; counters of training are not."""
  monkeypatch.setenv("JAXUNLEARN_PICKLE", "1")
  torch.save(reference().state_dict(), tmp_path / "sscd.torchvision.pt")
  got = extractors.sscd(weights.read(tmp_path / "sscd.torchvision.pt"))
  assert len(jax.tree.leaves(got)) == 53 + 53 * 4 + 2
  count = sum(value.size for value in random_resnet.state_dict().values())
  assert sum(leaf.size for leaf in jax.tree.leaves(got)) == count
  jax.tree.map(np.testing.assert_array_equal, got, params())


@pytest.mark.parametrize("head", ["fc", "embeddings.0", "embeddings.1"])
def test_head_may_lie_beside_the_trunk(head):
  state = {k.replace("backbone.fc", head): v for k, v in random_resnet.state_dict().items()}
  np.testing.assert_array_equal(extractors.sscd(state)["fc"]["bias"], params()["fc"]["bias"])


@pytest.mark.parametrize(
  "change",
  [
    {"backbone.fc.weight": np.zeros((1000, 2048), np.float32)},
    {"backbone.layer5.0.conv1.weight": np.zeros((1, 1, 1, 1), np.float32)},
    {"backbone.layer4.2.bn3.running_var": None},
  ],
)
def test_other_weights_are_refused(change):
  state = {k: v for k, v in {**random_resnet.state_dict(), **change}.items() if v is not None}
  with pytest.raises(ValueError, match=r"fc\.kernel|layer5_0|layer4_2\.bn3\.var") as error:
    extractors.sscd(state)
  assert "\n" not in str(error.value) and extractors.SSCD.url in str(error.value)
