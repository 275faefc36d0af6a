"""A U-ViT as a folder of weights: written, read and taken over by a config."""

import jax
import numpy as np
import pytest

from configs import common
from jaxunlearn import models
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.weights import layout, pretrained
from tests import nets

FIELDS = {"sample_size": 8, "in_channels": 1, "patch_size": 4, "width": 8, "depth": 2, "heads": 2}


@pytest.mark.parametrize("classes", [(), (3,), (3, 2)])
def test_there_and_back(classes, tmp_path):
  net = models.make("uvit", **FIELDS, classes=classes)
  params = nets.random_params(net)
  process = Diffusion(schedule="scaled_linear")
  pretrained.save(tmp_path, net, params, process)
  fields, of_process = pretrained.read_config(tmp_path)
  assert models.make(**fields) == net and Diffusion(**of_process) == process
  again = pretrained.load(tmp_path, jax.eval_shape(net.init, jax.random.key(0)))
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert not (tmp_path / layout.PIPELINE).exists()  # diffusers has none of it


def test_a_config_takes_it_over(tmp_path):
  net = models.make("uvit", **FIELDS)
  pretrained.save(tmp_path, net, nets.random_params(net), Diffusion())
  config = common.get_config()
  config.model = {"name": "pretrained"}
  config.init_from = str(tmp_path)
  pretrained.adopt(config)
  assert models.make(**config.model) == net
  config.model.width = 16
  with pytest.raises(ValueError, match=r"model\.width is 16 and the weights of .* with 8"):
    pretrained.adopt(config)


def test_a_field_that_it_has_not(tmp_path):
  net = models.make("uvit", **FIELDS)
  pretrained.save(tmp_path, net, nets.random_params(net), Diffusion())
  path = tmp_path / pretrained.CONFIG
  path.write_text(path.read_text().replace('"depth"', '"deep"'))
  with pytest.raises(ValueError, match="unexpected keyword argument 'deep'"):
    pretrained.read_config(tmp_path)
