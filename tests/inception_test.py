"""FID's Inception equals pytorch-fid's, with random weights and random statistics."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn.models import inception
from jaxunlearn.weights import extractors
from tests import random_inception, torchvision_ops

torchvision_ops.load()

from pytorch_fid import inception as theirs  # noqa: E402


def images():
  """Two pictures of different colours, contrast and texture."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:299, :299] / 299
  smooth = np.stack([np.sin(9 * x), np.cos(5 * y), x * y], axis=-1)
  return np.stack([smooth, -0.5 + 0.3 * rng.normal(size=(299, 299, 3))]).clip(-1, 1).astype("f4")


def test_features_are_pytorch_fids(monkeypatch):
  """Their own code loads the random weights, strictly, in place of those it downloads."""
  state = {name: torch.tensor(value) for name, value in random_inception.state_dict().items()}
  head = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
  monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda url, progress: state | head)
  net = theirs.InceptionV3([3], resize_input=False, normalize_input=False).eval()
  with torch.no_grad():
    want = net(torch.tensor(images()).permute(0, 3, 1, 2))[0][:, :, 0, 0].numpy()
  params = extractors.inception(random_inception.state_dict())
  got = np.asarray(inception.features(params, images()))
  assert 0.1 < want.std() < 10
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  apart = want[0] - want[1]  # small beside what all images share
  assert np.linalg.norm(got[0] - got[1] - apart) < 1e-4 * np.linalg.norm(apart)


def test_the_published_file_is_the_one_that_pytorch_fid_fetches():
  assert extractors.INCEPTION.url == theirs.FID_WEIGHTS_URL
  digits = re.search(r"-([0-9a-f]{8})\.pth$", extractors.INCEPTION.url)[1]
  assert re.fullmatch(f"{digits}[0-9a-f]{{56}}", extractors.INCEPTION.sha256)


def test_average_pools_count_no_padding():
  x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
  got = np.asarray(inception._average(jnp.asarray(x)))[0, :, :, 0]
  np.testing.assert_allclose(got, [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]])


def test_classifier_and_counters_are_left_out():
  state = random_inception.state_dict()
  more = {
    "fc.weight": np.zeros((1008, 2048)),
    "AuxLogits.fc.bias": np.zeros(5),
    "Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros((), np.int64),
  }
  a, b = extractors.inception(state), extractors.inception(state | more)
  np.testing.assert_array_equal(a["Conv2d_1a_3x3"]["kernel"], b["Conv2d_1a_3x3"]["kernel"])
  assert a.keys() == b.keys()


@pytest.mark.parametrize(
  "change",
  [
    lambda state: state.pop("Mixed_6c.branch7x7_2.bn.running_var"),
    lambda state: state.update({"Mixed_6c.branch7x7_9.conv.weight": np.zeros((1, 1, 1, 1))}),
    lambda state: state.update({"Mixed_6c.branch7x7_2.conv.weight": np.zeros((160, 160, 7, 1))}),
  ],
)
def test_other_weights_are_named(change):
  state = dict(random_inception.state_dict())
  change(state)
  with pytest.raises(ValueError, match=r"FID's Inception: 'Mixed_6c.branch7x7_[29].*fetch"):
    extractors.inception(state)
