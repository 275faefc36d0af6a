"""The CelebA-HQ run from diffusers' weights and back, with random weights.

The steps: the UNet saved by diffusers, an image folder, `siss_celeba` for two steps in
micro-batches, the first of them repeated in PyTorch, a small evaluation, export, diffusers. It has
three narrow levels at 32 px; `pytest tests/celeba_test.py --full-size` takes all 113,673,219
parameters at 256 px (10 GiB).
"""

import jax
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from benchmarks import celeba, torch_reference
from configs import siss_celeba
from jaxunlearn import build, checkpoint, export, models, train
from jaxunlearn.mesh import sharding
from jaxunlearn.weights import pretrained

SMALL = {  # what takes time is to trace the levels
  "sample_size": 32,
  "block_out_channels": [32, 32, 64],
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
  "layers_per_block": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pytestconfig):
  """(where the run is, its config, how many parameters it has)"""
  root = tmp_path_factory.mktemp("celeba")
  changes = {} if pytestconfig.getoption("full_size") else SMALL
  parameters = celeba.save_base(root / "base", **changes)
  celeba.save_images(root / "images")
  celeba.save_extractors(root)
  config = siss_celeba.get_config()
  config.update_from_flattened_dict(celeba.overrides(root))
  config.mesh.update(data=1, fsdp=1)
  config.model.update(changes)
  config.data.size = config.model.sample_size
  results = train.run(config, root / "run")["after"]
  assert -1 <= results["sscd"]["value"] <= 1 and results["fid"]["value"] > 0
  return root, config, parameters


def test_one_step_is_an_independent_pytorch_step(finished):
  root, config, _ = finished
  setup = build.build(config)
  rng = jax.random.fold_in(jax.random.key(config.seed), 0)
  draw = jax.jit(lambda batch: setup.method.draw(setup.process, batch, rng, {}, 0))
  draws = draw(setup.host_batch(0))
  nchw = lambda name: torch.from_numpy(np.array(draws[name])).permute(0, 3, 1, 2)
  x, a, t = nchw("x"), nchw("a"), torch.from_numpy(np.array(draws["t"])).long()
  picked = torch.from_numpy(np.array(draws["from_a"]))[:, None, None, None]
  m_t = torch_reference.q_sample(torch.where(picked, a, x), t, nchw("eps"))

  unet = UNet2DModel.from_pretrained(root / "base", subfolder="unet")
  before = {k: v.clone() for k, v in unet.state_dict().items()}
  method, opt = config.method, config.optimizer
  grads = torch_reference.siss_direction(unet, x, a, t, m_t, method.lam, method.forget_norm)
  params = list(unet.parameters())
  for parameter, gradient in zip(params, grads, strict=True):
    parameter.grad = gradient
  torch.nn.utils.clip_grad_norm_(params, opt.clip)
  torch.optim.AdamW(
    params, opt.learning_rate, (opt.b1, opt.b2), weight_decay=opt.weight_decay
  ).step()

  target = sharding.shaped(setup.mesh, jax.eval_shape(setup.net.init, jax.random.key(0)))
  ours = pretrained.to_state_dict(checkpoint.read_params(root / "run", target, step=1))
  # Adam's first step is the rate times the gradient's sign. What a norm of one channel a group
  # takes out again (conv1.bias, the time's shift) has a gradient of rounding, and a small step.
  apart, step, checked = [], [], 0
  for name, theirs in unet.state_dict().items():
    theirs = theirs.numpy()
    apart.append(np.linalg.norm(ours[name] - theirs))
    step.append(np.linalg.norm(theirs - before[name].numpy()))
    if step[-1] > 0.5 * opt.learning_rate * theirs.size**0.5:
      assert apart[-1] <= max(1e-5 * np.linalg.norm(theirs), 0.25 * step[-1]), name
      checked += 1
  assert checked > len(step) / 2
  assert 0 < np.linalg.norm(apart) <= 0.05 * np.linalg.norm(step)


def test_the_config_has_the_published_size():
  shapes = jax.eval_shape(models.make(**siss_celeba.get_config().model).init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == celeba.PARAMETERS


def test_the_result_goes_back_to_diffusers(finished):
  root, config, parameters = finished
  export.export(root / "run", root / "out")
  pipeline = DDPMPipeline.from_pretrained(root / "out")
  unet = UNet2DModel.from_pretrained(root / "out")
  assert sum(p.numel() for p in unet.parameters()) == parameters
  setup = build.build(config)
  params = pretrained.load(root / "out", jax.eval_shape(setup.net.init, jax.random.key(0)))
  x = np.random.default_rng(1).standard_normal((1, *setup.net.image_shape), np.float32)
  t = np.array([421], np.int32)
  ours = np.asarray(jax.jit(setup.net.apply)(params, x, t))
  with torch.no_grad():
    theirs = pipeline.unet(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t)).sample
  np.testing.assert_allclose(
    ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5 * np.abs(ours).max()
  )
