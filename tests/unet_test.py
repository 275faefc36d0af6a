"""The UNet against diffusers' UNet2DModel in PyTorch (unet_parity.py), and what it promises."""

import dataclasses
import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn import models
from jaxunlearn.models import unet, unet_blocks
from tests import full_unets, tiny_unet
from tests.unet_parity import distance, nchw


@pytest.mark.parametrize("name", full_unets.UNETS)
def test_the_published_unets_have_their_size_and_a_quarter_of_it_equals_diffusers(name):
  config, t, parameters = full_unets.UNETS[name]
  size = sum(leaf.size for leaf in jax.tree.leaves(tiny_unet.shapes(unet.Net(**config))))
  with torch.device("meta"):
    published = diffusers.UNet2DModel(**config)
  assert size == sum(leaf.numel() for leaf in published.parameters()) == parameters
  quarter = tuple(max(32, width // 4) for width in config["block_out_channels"])
  full_unets.check(config | {"block_out_channels": quarter}, t)


RESAMPLED = {  # residual blocks halve and double, heads of 5 in widths of 8 and 16, 8 x 16 pixels
  "sample_size": (8, 16),
  "in_channels": 1,
  "out_channels": 1,
  "block_out_channels": (8, 8, 16),
  "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
  "downsample_type": "resnet",
  "upsample_type": "resnet",
  "layers_per_block": 1,
  "attention_head_dim": 5,
  "norm_num_groups": 4,
  "resnet_time_scale_shift": "scale_shift",
}
ODD = {  # an odd first width, narrower than a head and without attention; a table of classes
  "sample_size": 8,
  "block_out_channels": (9, 12),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
  "in_channels": 3,
  "out_channels": 3,
  "layers_per_block": 1,
  "attention_head_dim": 12,
  "norm_num_groups": 3,
  "attn_norm_num_groups": 2,
  "time_embedding_dim": 20,
  "num_class_embeds": 3,
}


class Labelled(diffusers.UNet2DModel):
  """Two rows, of the classes 2 and 1."""

  def forward(self, x, t):
    return super().forward(x, t, class_labels=torch.tensor([2, 1]))


def test_scale_shift_resampling_blocks_and_odd_sizes_equal_diffusers():
  full_unets.check(RESAMPLED, t=(13, 700))


@pytest.mark.parametrize(("classes", "c"), [((3,), [2, 1]), ((2,), [-1, 1])])
def test_a_table_of_classes_and_an_odd_width_equal_diffusers(classes, c):
  """The last row stands for no class where there is one class less."""
  c = jnp.array(c, jnp.int32)
  full_unets.check(ODD, t=(13, 700), classes=classes, c=c, model=Labelled)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_types_at_any_compute_type(dtype):
  net = dataclasses.replace(tiny_unet.NET, sample_size=28, dtype=dtype)
  shapes = tiny_unet.shapes(net)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
  x = jax.ShapeDtypeStruct((3, *net.image_shape), jnp.float32)
  y = jax.eval_shape(net.apply, shapes, x, jax.ShapeDtypeStruct((3,), jnp.int32))
  assert (y.shape, y.dtype) == (x.shape, jnp.float32)


@functools.cache
def tiny(**fields):
  """The jitted tiny UNet, its parameters and three rows of input."""
  net = dataclasses.replace(tiny_unet.NET, **fields)
  rng = np.random.default_rng(1)
  x = rng.normal(size=(3, *net.image_shape)).astype(np.float32)
  return jax.jit(net.apply), tiny_unet.random_params(net), x, np.array([0, 500, 999], np.int32)


@pytest.mark.parametrize(
  ("layer", "torch_layer"),
  [
    (unet_blocks.Conv(64), torch.nn.Conv2d(32, 64, 3)),
    (unet_blocks.Conv(64, size=1), torch.nn.Conv2d(32, 64, 1)),
    (unet_blocks.Linear(64), torch.nn.Linear(32, 64)),
  ],
)
def test_initial_weights_are_spread_as_pytorchs(layer, torch_layer):
  params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
  for got, want in ((params["kernel"], torch_layer.weight), (params["bias"], torch_layer.bias)):
    want = want.detach().numpy()
    assert got.size == want.size
    np.testing.assert_allclose(
      [got.min(), got.max(), got.std()], [want.min(), want.max(), want.std()], rtol=0.25
    )
  assert np.abs(params["kernel"]).max() <= torch_layer.weight[0].numel() ** -0.5


def test_bfloat16_compute_is_near_float32():
  apply, params, x, t = tiny()
  apply_bf16, *_ = tiny(dtype="bfloat16")
  want, got = apply(params, x, t), apply_bf16(params, x, t)
  assert got.dtype == jnp.float32
  assert 1e-4 < distance(got, want) < 3e-2


def test_patches_are_an_unpatched_unet_on_folded_images():
  apply, params, x, t = tiny(patch_size=2, in_channels=2)
  inner = unet.Net(
    **{**dataclasses.asdict(tiny_unet.NET), "sample_size": 4, "in_channels": 8, "out_channels": 8}
  )
  b, h, w, c = x.shape
  fold = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, 4, 4, 4 * c)
  y = np.asarray(jax.jit(inner.apply)(params, fold, t))
  unfolded = y.reshape(b, 4, 4, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
  np.testing.assert_allclose(apply(params, x, t), unfolded, rtol=1e-5, atol=1e-6)


def test_a_row_depends_on_its_own_image_and_time_alone():
  apply, params, x, t = tiny()
  y = np.asarray(apply(params, x, t))
  other_x, other_t = x.copy(), t.copy()
  other_x[1] += 1
  other_t[2] -= 100
  changed = np.asarray(apply(params, other_x, other_t))
  np.testing.assert_allclose(changed[0], y[0], rtol=1e-5, atol=1e-6)
  assert distance(changed[1], y[1]) > 1e-2
  assert distance(changed[2], y[2]) > 1e-3


def test_float_times_continue_the_whole_ones():
  apply, params, x, t = tiny()
  at = lambda t: np.asarray(apply(params, x, np.asarray(t)))
  np.testing.assert_array_equal(at(t.astype(np.float32)), at(t))
  between = np.array([300.0, 300.5, 301.0], np.float32)
  same_image = np.repeat(x[:1], 3, axis=0)
  y = np.asarray(apply(params, same_image, between))
  assert distance(y[1], y[0]) > 1e-5 and distance(y[1], y[2]) > 1e-5
  assert distance(y[1], y[0]) < 2 * distance(y[2], y[0])


def test_group_norm_keeps_its_precision_where_the_mean_is_large():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 16, 16, 16)).astype(np.float32)
  norm = unet_blocks.GroupNorm(tiny_unet.NET, silu=False)
  scale, bias = rng.normal(size=(2, 16)).astype(np.float32)
  apply = jax.jit(lambda x: norm.apply({"params": {"scale": scale, "bias": bias}}, x))
  for mean, limit in ((0, 1e-6), (30, 1e-5), (1000, 1e-4)):
    shifted = (x + mean).astype(np.float32)
    want = torch.nn.functional.group_norm(
      *(torch.tensor(nchw(shifted), dtype=torch.float64), 4),
      *(torch.tensor(v, dtype=torch.float64) for v in (scale, bias)),
      tiny_unet.NET.norm_eps,
    )
    assert distance(nchw(np.asarray(apply(shifted))), want.numpy()) < limit, mean


def test_a_condition_is_refused():
  with pytest.raises(ValueError, match="unconditional"):
    tiny_unet.NET.apply({}, jnp.zeros((1, 8, 8, 2)), jnp.zeros(1, int), jnp.zeros(1, int))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"attention_head_dim": 17}, "attention_head_dim 17 is more than block_out_channels 16 of a"),
    ({"attention_head_dim": 0}, "attention_head_dim is 0; use a whole number, 1 or more, or None"),
    ({"attn_norm_num_groups": 3}, "block_out_channels 16 .* attn_norm_num_groups 3; use a divisor"),
    ({"out_channels": 4}, "out_channels is 4 and in_channels 2: .* learned variance is not"),
    (
      {"num_class_embeds": 4},
      r"classes is \(\) and num_class_embeds 4; use \(4,\), or \(3,\) where",
    ),
    ({"sample_size": (8, 8, 8)}, r"sample_size is \(8, 8, 8\); give a side, or height and width"),
    (
      {"resnet_time_scale_shift": "spatial"},
      "no resnet_time_scale_shift 'spatial'; there are: def",
    ),
    ({"downsample_type": "fir"}, "no downsample_type 'fir'; there are: conv, resnet"),
    ({"norm_num_groups": 5}, "block_out_channels 8 .* norm_num_groups 5; use a multiple"),
    ({"norm_num_groups": 0}, "norm_num_groups is 0; use a whole number, 1 or more"),
    ({"sample_size": 7}, "sample_size 7 .* use a multiple of 2"),
    ({"sample_size": 10, "patch_size": 2}, "sample_size 10 with patch_size 2 .* multiple of 4"),
    ({"downsample_padding": 2}, "downsample_padding is 2; use a whole number, 0 to 1"),
    ({"down_block_types": ("DownBlock2D",)}, "down_block_types has 1 blocks .* 2; give one"),
    (
      {"down_block_types": ("DownBlock2D", "AtnDownBlock2D")},
      "no block of down_block_types 'AtnDownBlock2D' .did you mean 'AttnDownBlock2D'",
    ),
    (
      {"up_block_types": ("UpBlock2D", "DownBlock2D")},
      "no block of up_block_types 'DownBlock2D'.*there are: UpBlock2D, AttnUpBlock2D, Res",
    ),
    ({"dtype": "bfloat"}, "no dtype 'bfloat' .did you mean 'bfloat16'"),
    ({"blocks": 3}, "model unet has no field 'blocks'"),
  ],
)
def test_wrong_fields_say_the_rule(fields, message):
  with pytest.raises(ValueError, match=message) as error:
    models.make("unet", **{**dataclasses.asdict(tiny_unet.NET), **fields})
  assert "\n" not in str(error.value)


def test_a_field_of_several_takes_values_of_its_kind_alone():
  assert unet._tuple("block_out_channels", [8, 16]) == (8, 16)
  with pytest.raises(ValueError, match=r"block_out_channels is \('8', 16\); give a list of ints"):
    unet._tuple("block_out_channels", ("8", 16))
