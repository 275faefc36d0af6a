"""The full-size configs on data and networks in miniature: each built, every variant stepped."""

import importlib
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from configs import (
  attack_cifar10_full,
  pretrain_cifar10_full,
  pretrain_uvit_64,
  siss_celeba,
  siss_mnist_full,
  table_mnist,
  unlearn_cifar10_full,
)
from jaxunlearn import build, models, streams, train
from tests import nets, tfds_files

CONFIGS = pathlib.Path(pretrain_uvit_64.__file__).parent
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OBJECTS, STYLES = ("Cats", "Dogs", "Trees"), ("Rust", "Seed_Images", "Van_Gogh", "Winter")
SMALL = {  # one level inside, at 4 px
  "model.block_out_channels": (8,),
  "model.down_block_types": ("DownBlock2D",),
  "model.up_block_types": ("UpBlock2D",),
  "model.layers_per_block": 1,
  "model.norm_num_groups": 4,
  "mesh.data": 1,
  "mesh.fsdp": 1,
  "train.batch": 4,
}
VARIANTS = [name for name in unlearn_cifar10_full.PAPERS if name != "embedding_copy"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
  """A folder with 40 CIFAR-10 images, a tree of styles and objects, and a run's samples."""
  root, rng = tmp_path_factory.mktemp("full"), np.random.default_rng(0)
  images = lambda *shape: rng.integers(0, 256, shape, dtype=np.uint8)
  splits = {"train": images(40, 32, 32, 3), "test": images(10, 32, 32, 3)}
  tfds_files.prepare(root, "cifar10", splits, names=CLASSES)
  for style in STYLES:
    for name in OBJECTS:
      (root / "canvas" / style / name).mkdir(parents=True)
      for i in range(5):
        Image.fromarray(images(70, 80, 3)).save(root / "canvas" / style / name / f"{i}.jpg")
  c = np.arange(20, dtype=np.int32) % 10
  np.savez(root / streams.SAMPLES, image=images(20, 32, 32, 3), c=c)
  return root


def small(name, here, *variant):
  config = importlib.import_module(f"configs.{name}").get_config(*variant)
  config.init_from = ""
  config.update_from_flattened_dict(SMALL)
  config.model.patch_size = config.model.sample_size // 4
  if config.data.source == "folder":
    config.data.path, config.model.classes = str(here / "canvas"), (len(OBJECTS), len(STYLES))
  else:
    config.data.data_dir = str(here)
  for name in ("fisher_rows", "mask_rows"):
    if name in config.method:
      config.method[name] = 2
  for name, take in config.streams.items():
    if isinstance(take, str) and "samples:" in take:
      config.streams[name] = f"{take.partition(':')[0]}:{here}"
  return config


def step(config):
  """(setup, parameters before and after the method's start and one step, metrics)."""
  setup = build.build(config)
  params = nets.random_params(setup.net)
  state, metrics = build.make_state(setup, params), {}
  if config.train.steps:
    state, metrics = train.make_update(setup, state)(state, setup.batch(0))
  return setup, params, jax.device_get(state.params), jax.device_get(metrics)


def moved(before, after):
  """The names of the leaves that changed."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for (path, old), new in zip(
      jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True
    )
    if not np.array_equal(old, new)
  }


def check_step(config):
  setup, before, after, metrics = step(config)
  assert setup.net.dropout == 0.1
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, metrics)))
  assert metrics["grad_norm"] > 0
  return setup, moved(before, after)


@pytest.mark.parametrize("name", ["pretrain_cifar10_full", "pretrain_canvas_full"])
def test_pretraining_takes_a_step(name, here):
  setup, changed = check_step(small(name, here))
  assert not setup.forget.any() and setup.config.ema == 0.9999
  assert {"conv_in/kernel", "class_embedding_0/embedding"} <= changed


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_method_takes_a_step_on_cifar10(variant, here):
  setup, changed = check_step(small("unlearn_cifar10_full", here, variant))
  assert setup.forget.sum() == 4 and setup.train.classes[setup.concept.value] == "airplane"
  assert "conv_in/kernel" in changed


def test_the_control_copies_an_embedding_and_takes_no_step(here):
  _, before, after, _ = step(small("unlearn_cifar10_full", here, "embedding_copy"))
  assert moved(before, after) == {"class_embedding_0/embedding"}
  table = after["class_embedding_0"]["embedding"]
  np.testing.assert_array_equal(table[0], table[1])


def test_dimum_takes_a_step_on_a_style(here):
  config = small("unlearn_canvas_full", here)
  config.streams.alt.take = "style:Seed_Images"
  setup, changed = check_step(config)
  assert setup.forget.sum() == 14 and len(setup.heldout) == 6  # every tenth of 60
  assert setup.train.vocabulary == (OBJECTS, STYLES)
  rows, style = setup.streams["alt"].at(0), STYLES.index("Van_Gogh")
  assert (rows.c[:, 1] == style).all()
  np.testing.assert_array_equal(rows.c[:, 0], setup.train.label[rows.index])
  assert (setup.train.style[rows.index] == STYLES.index("Seed_Images")).all()
  assert "class_embedding_1/embedding" in changed


@pytest.mark.parametrize("variant", unlearn_cifar10_full.PAPERS)
def test_every_method_builds_on_a_style_and_on_an_object(variant, here):
  config = small("unlearn_canvas_full", here, variant)
  if variant == "selective_amnesia":
    config.streams.update(x="retain", all="all")  # the samples here are of CIFAR-10
  assert build.build(config).concept.column == 1
  config.forget.update(style="", label="Dogs")
  assert build.build(config).concept.column == 0


@pytest.mark.parametrize("variant", ["dimra_retain", "few_10"])
def test_an_attack_takes_a_step(variant, here):
  setup, _ = check_step(small("attack_cifar10_full", here, variant))
  seen = set(setup.streams["x"].index.tolist())
  forgotten = set(np.flatnonzero(setup.forget).tolist())
  assert not seen & forgotten if variant == "dimra_retain" else seen == forgotten


@pytest.mark.parametrize("variant", attack_cifar10_full.ATTACKS)
def test_every_attack_builds(variant, here):
  kind = {"d": "dimra", "f": "few_shot", "i": "inversion"}[variant[0]]
  assert build.build(small("attack_cifar10_full", here, variant)).config.attack == kind
  if variant != "dimra_samples":
    build.build(small("attack_canvas_full", here, variant))


@pytest.mark.parametrize(
  ("name", "parameters"),
  [("pretrain_cifar10_full", 38_632_323), ("pretrain_canvas_full", 41_524_867)],
)
def test_the_networks_are_of_the_papers_size(name, parameters):
  config = importlib.import_module(f"configs.{name}").get_config()
  shapes = jax.eval_shape(models.make(**config.model).init, jax.random.key(0))
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == parameters


FULL = sorted(path.stem for path in CONFIGS.glob("*_full.py"))


@pytest.mark.parametrize(
  "name", [*FULL, "siss_celeba", "siss_celeba_sequence", "siss_sd", "pretrain_uvit_64"]
)
def test_a_config_at_full_size_says_how_it_deviates(name):
  doc = importlib.import_module(f"configs.{name}").__doc__
  assert re.search(r"^Deviations\b.*:", doc, re.MULTILINE)


def test_the_settings_are_the_papers():
  base, get = pretrain_cifar10_full.get_config(), unlearn_cifar10_full.get_config
  optimizer = base.optimizer
  assert (optimizer.learning_rate, optimizer.clip, optimizer.weight_decay) == (2e-4, 1.0, 0.0)
  assert (base.train.steps, base.train.batch, base.method.c_dropout) == (800_000, 128, 0.1)
  steps = {"dimum": 10_000, "salun": 1000, "sfron": 300, "selective_amnesia": 20_000}
  steps |= {"neggrad": 1000, "erasediff": 864}
  for variant, count in steps.items():
    config = get(variant)
    average = (0.9999, False) if variant == "selective_amnesia" else (0.0, True)
    assert (config.train.steps, config.train.batch) == (count, 128)
    assert (config.ema, config.ema_warmup) == average
    assert (config.optimizer.learning_rate, config.optimizer.clip) == (1e-4, 1.0)
    assert (config.optimizer.schedule, config.optimizer.warmup) == ("constant", 0)
    evaluation = config.eval
    assert (evaluation.sampler, evaluation.steps, evaluation.guidance) == ("ddpm", 1000, 2.0)
    assert config.sampler.clip_sample is False
    assert (evaluation.asked, evaluation.samples, evaluation.reference) == (500, 45_000, "retain")
  assert get("sfron").method.iterations == 150
  method = get("erasediff").method
  assert 864 * method.outer_steps == 288 * (method.inner_steps + method.outer_steps)
  for module, count in ((siss_mnist_full, 50), (siss_celeba, 40)):
    assert module.get_config("retrack").train.steps == count
    evaluation = module.get_config().eval
    assert (evaluation.nll_protocol, evaluation.nll_tolerance) == ("siss", 1e-5)
  beside = table_mnist.get_config().runs.values()
  assert {run.eval.nll_protocol for run in beside} == {"siss"}
  assert siss_celeba.get_config().eval.fid_resize == "torchmetrics"
  assert pretrain_uvit_64.get_config().optimizer.clip is None
  assert get("dimum").method.lam == 1
