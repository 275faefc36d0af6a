"""The networks of Stable Diffusion against diffusers' and transformers' in PyTorch, at small size.

The references run in float64, so that a distance of 1e-5 is this implementation's own error.
"""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxunlearn.models import clip, text_unet, vae
from jaxunlearn.weights import pretrained
from tests.unet_parity import distance, nchw, unlike_new

UNET = {
  "sample_size": 8,
  "block_out_channels": (16, 32, 32),
  "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 12,
}
STYLES = {
  "1": {"attention_head_dim": 4},
  "2": {"attention_head_dim": (2, 4, 4), "use_linear_projection": True},
}
VAE = {
  "sample_size": 16,
  "block_out_channels": (8, 16),
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "scaling_factor": 0.3,
}
CLIP = {
  "hidden_size": 16,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "projection_dim": 6,
}
TEXT = {"vocab_size": 30, "max_position_embeddings": 9}
VISION = {"image_size": 12, "patch_size": 4}
SKIPPED = ("to_k.bias", "k_proj.bias")  # whose true gradient is zero


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(net):
  return jax.eval_shape(net.init, jax.random.key(0))


def arrays(module):
  return {
    name: leaf.detach().numpy().astype(np.float32) for name, leaf in module.named_parameters()
  }


def check(apply, params, module, forward):
  """apply(params) -> [..., C] is forward(), a module's output in PyTorch, and so are gradients."""
  y = np.asarray(jax.jit(apply)(params))
  w = draw(*y.shape, seed=1)
  grads = jax.jit(jax.grad(lambda p: jnp.sum(w * apply(p))))(params)
  module.double().zero_grad()
  want = forward()
  assert distance(y, want.detach().numpy()) < 1e-5
  (want * torch.tensor(w, dtype=want.dtype)).sum().backward()
  theirs = {n: leaf.grad.numpy() for n, leaf in module.named_parameters() if leaf.grad is not None}
  ours = pretrained.to_state_dict(grads)
  for name, grad in theirs.items():
    if not name.endswith(SKIPPED):
      assert distance(ours[name], grad) < 2e-5, name
  for name in ours.keys() - theirs.keys():
    assert not ours[name].any(), name


@pytest.mark.parametrize("style", STYLES)
def test_the_unet_equals_diffusers(style):
  fields = UNET | STYLES[style]
  torch.manual_seed(0)
  module = unlike_new(diffusers.UNet2DConditionModel(**fields))
  net = text_unet.Net(**fields)
  params = pretrained.from_state_dict(arrays(module), shapes(net))
  assert pretrained.to_state_dict(params).keys() == module.state_dict().keys()
  x, c, t = draw(2, *net.image_shape), draw(2, 5, 12, seed=2), np.array([3, 800])
  apply = lambda net, params: net.apply(params, *map(jnp.asarray, (x, t, c)))

  def forward():
    given = (torch.tensor(nchw(x)).double(), torch.tensor(t), torch.tensor(c).double())
    return module(*given).sample.permute(0, 2, 3, 1)

  check(lambda p: apply(net, p), params, module, forward)
  again = dataclasses.replace(net, remat=True)
  gradient = lambda net: jax.grad(lambda p: jnp.sum(apply(net, p) ** 2))(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
    jax.jit(lambda: gradient(net))(),
    jax.jit(lambda: gradient(again))(),
  )


def test_the_default_unet_is_stable_diffusion_1():
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes(text_unet.Net())))
  assert count == 859_520_964
  heads = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024}
  two = text_unet.Net(use_linear_projection=True, **heads)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes(two))) == 865_910_724


def test_the_autoencoder_equals_diffusers():
  torch.manual_seed(0)
  down, up = (2 * [f"{way}Block2D"] for way in ("DownEncoder", "UpDecoder"))
  module = diffusers.AutoencoderKL(**VAE, down_block_types=down, up_block_types=up)
  net = vae.Autoencoder(**VAE)
  params = pretrained.from_state_dict(arrays(unlike_new(module)), shapes(net))
  x, z = draw(2, 16, 16, 3), draw(2, 8, 8, 4)

  def moments(params):
    mean, log_var = net.encode(params, jnp.asarray(x))
    return jnp.concatenate([mean, log_var], axis=-1)

  def their_moments():
    latent = module.encode(torch.tensor(nchw(x)).double()).latent_dist
    return torch.cat([latent.mean, latent.logvar], dim=1).permute(0, 2, 3, 1)

  def decoded():
    return module.decode(torch.tensor(nchw(z)).double() / 0.3).sample.permute(0, 2, 3, 1)

  check(moments, params, module, their_moments)
  check(lambda p: net.decode(p, jnp.asarray(z)), params, module, decoded)
  assert (net.factor, vae.Autoencoder().factor) == (2, 8)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes(vae.Autoencoder()))) == 83_653_863


def test_a_posterior_has_its_mean_and_spread():
  log_var = jnp.full((1, 2, 2, 4), 2 * np.log(0.5))
  moments = vae.Moments(jnp.full((1, 2, 2, 4), 3.0), log_var)
  draws = jax.vmap(lambda key: vae.Autoencoder().sample(moments, key))(
    jax.random.split(jax.random.key(0), 4000)
  )
  np.testing.assert_allclose(draws.mean(), 0.18215 * 3, rtol=0.01)
  np.testing.assert_allclose(draws.std(), 0.18215 * 0.5, rtol=0.02)


@pytest.mark.parametrize("act", clip.ACTIVATIONS)
def test_the_text_tower_equals_transformers(act):
  torch.manual_seed(0)
  config = transformers.CLIPTextConfig(
    **CLIP, **TEXT, hidden_act=act, bos_token_id=28, eos_token_id=29, pad_token_id=29
  )
  module = unlike_new(transformers.CLIPTextModelWithProjection(config)).eval()
  net = clip.Text(**CLIP, **TEXT, hidden_act=act, end=29)
  state = {name.removeprefix("text_model."): v for name, v in arrays(module).items()}
  params = pretrained.from_state_dict(state, shapes(net))
  ids = jnp.array([[28, 4, 5, 29, 29, 29, 29, 29, 29], [28, 1, 2, 3, 4, 5, 6, 7, 29]])
  module.double()
  with torch.no_grad():
    want = module(torch.tensor(np.asarray(ids)))
  assert distance(np.asarray(net.states(params, ids)), want.last_hidden_state.numpy()) < 1e-5
  assert distance(np.asarray(net.embed(params, ids)), want.text_embeds.numpy()) < 1e-5
  grads = jax.grad(lambda p: jnp.sum(net.embed(p, ids) ** 2))(params)
  (module(torch.tensor(np.asarray(ids))).text_embeds ** 2).sum().backward()
  ours = pretrained.to_state_dict(grads)
  for name, leaf in module.named_parameters():
    name = name.removeprefix("text_model.")
    if not name.endswith(SKIPPED):
      assert distance(ours[name], leaf.grad.numpy()) < 2e-5, name


def test_the_vision_tower_equals_transformers():
  torch.manual_seed(0)
  config = transformers.CLIPVisionConfig(**CLIP, **VISION)
  module = unlike_new(transformers.CLIPVisionModelWithProjection(config)).eval()
  net = clip.Vision(**CLIP, **VISION)
  state = {name.removeprefix("vision_model."): v for name, v in arrays(module).items()}
  params = pretrained.from_state_dict(state, shapes(net))
  images = draw(2, 12, 12, 3)
  want = module.double()(torch.tensor(nchw(images)).double()).image_embeds.detach().numpy()
  assert distance(np.asarray(net.embed(params, jnp.asarray(images))), want) < 1e-5


def test_the_default_text_tower_is_stable_diffusion_1():
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes(clip.Text()))) == 123_060_480


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"block_out_channels": (16, 30, 32)}, "30 does not divide into norm_num_groups 8 and into 4"),
    ({"sample_size": 6}, "sample_size is 6; use a multiple of 4"),
    ({"attention_head_dim": (2, 4)}, "has 2 numbers of heads and block_out_channels 3 levels"),
    ({"up_block_types": ("UpBlock2D",) * 2}, "up_block_types has 2 blocks"),
    ({"down_block_types": ("AttnDownBlock2D",) * 3}, "no block of down_block_types"),
  ],
)
def test_an_impossible_unet_is_refused(fields, error):
  with pytest.raises(ValueError, match=error):
    text_unet.Net(**(UNET | STYLES["1"] | fields))
