"""Every config resolves, has its command in its docstring, and is a run that can start."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from configs import siss_mnist
from jaxunlearn import data, methods, pretrained, train
from jaxunlearn.data import mnist_tshirt, tfds_tshirt

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(
  p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common")
)
RUNS = [name for name in NAMES if not name.startswith("table")]


@pytest.fixture(autouse=True)
def _no_full_sets(monkeypatch):
  """The full sets are not here: two digits and a T-shirt stand in for them."""
  monkeypatch.setattr(tfds_tshirt.Source, "load", lambda _: mnist_tshirt.Source(digits=100).load())


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_the_command(name):
  module = importlib.import_module(f"configs.{name}")
  assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", RUNS)
def test_it_builds(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  setup = train.build(config)
  assert setup.forget.any()


@pytest.mark.parametrize("variant", sorted(siss_mnist.METHODS))
def test_every_variant_builds(variant):
  train.build(siss_mnist.get_config(variant))


@pytest.mark.parametrize("name", methods.names())
def test_any_method_runs_by_its_module_name(name):
  assert train.build(siss_mnist.get_config(name)).method == methods.make(name)


def test_a_wrong_variant_lists_the_choices():
  with pytest.raises(ValueError, match=r"no method 'sis' \(did you mean 'siss'.*retrack"):
    siss_mnist.get_config("sis")


@pytest.mark.parametrize("name", ["pretrain_mnist", "retrain_mnist"])
def test_the_embedded_weights_are_of_their_config(name):
  net = train.build(importlib.import_module(f"configs.{name}").get_config()).net
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  params = pretrained.load(data.ASSETS / name, shapes)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
