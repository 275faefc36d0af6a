"""The U-ViT against an independent one in PyTorch (torch_uvit.py), and what it promises."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn import models
from jaxunlearn.diffusion import NULL
from jaxunlearn.methods import embeddings
from jaxunlearn.models import uvit
from jaxunlearn.weights import uvit_weights
from tests import tiny_unet, torch_uvit, unet_parity
from tests.unet_parity import distance, nchw

TINY = {"sample_size": 8, "patch_size": 2, "width": 32, "depth": 2, "heads": 4}
T = np.array([0, 421, 999], np.int32)
ROWS = {  # the conditions of three rows, nulls among them
  (): None,
  (5,): [4, NULL, 0],
  (3, 2): [[2, 0], [0, NULL], [NULL, 1]],
}
# The ImageNet 64 models were trained without guidance: 1000 rows, no null beside them.
IMAGENET_64 = {"sample_size": 64, "patch_size": 4, "classes": (999,), "time": "vpsde"}
IMAGENET_256 = {"in_channels": 4, "heads": 16, "classes": (1000,)}
PUBLISHED = {
  "CIFAR-10 S/2": ({}, 44_255_328),
  "CelebA 64 S/4": ({"sample_size": 64, "patch_size": 4}, 44_292_228),
  "ImageNet 64 M/4": (IMAGENET_64 | {"width": 768, "depth": 16, "heads": 12}, 130_940_292),
  "ImageNet 64 L/4": (IMAGENET_64 | {"width": 1024, "depth": 20, "heads": 16}, 286_827_652),
  "ImageNet 256 L/2": (IMAGENET_256 | {"width": 1024, "depth": 20}, 286_763_172),
  "ImageNet 256 H/2": (
    IMAGENET_256 | {"width": 1152, "depth": 28, "head_conv": False},
    500_832_016,
  ),
}
LAYERS = {
  "norm1": ("weight", "bias"),
  "attn.qkv": ("weight",),
  "attn.proj": ("weight", "bias"),
  "norm2": ("weight", "bias"),
  "mlp.fc1": ("weight", "bias"),
  "mlp.fc2": ("weight", "bias"),
}
BLOCK = [f"{layer}.{kind}" for layer, kinds in LAYERS.items() for kind in kinds]
SKIP = ["skip_linear.weight", "skip_linear.bias"]
ENDS = [
  f"{x}.{kind}" for x in ("patch_embed.proj", "norm", "decoder_pred") for kind in ("weight", "bias")
]
HEAD = ["final_layer.weight", "final_layer.bias"]


@functools.cache
def tiny(**fields):
  """The jitted tiny U-ViT, its parameters and three rows of input."""
  net = uvit.Net(**TINY | fields)
  x = np.random.default_rng(1).normal(size=(3, *net.image_shape)).astype(np.float32)
  return jax.jit(net.apply), tiny_unet.random_params(net), x, T


def of(c):
  return None if c is None else jnp.array(c, jnp.int32)


def in_torch(net, params, c=None, prompts=0):
  model = torch_uvit.UViT(net, None if c is None else np.reshape(c, (len(c), -1)), prompts)
  state = {name: torch.tensor(leaf) for name, leaf in uvit_weights.to_state_dict(params).items()}
  model.load_state_dict(state, strict=True)
  return model


def random_prompts(net, *rows, tokens=3):
  shape = (*rows, net.depth + 1, tokens, net.width)
  return np.random.default_rng(2).normal(size=shape).astype(np.float32)


# Sizes and names.


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
  fields, parameters = PUBLISHED[name]
  shapes = tiny_unet.shapes(models.make("uvit", **fields))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize("fields", [{}, {"classes": (5,)}, {"head_conv": False}], ids=str)
def test_state_dicts_by_published_names_both_ways(fields):
  net = uvit.Net(**TINY | {"depth": 4} | fields)
  params = tiny_unet.random_params(net)
  state = uvit_weights.to_state_dict(params)
  names = [
    f"{block}.{name}" for block in ("in_blocks.0", "in_blocks.1", "mid_block") for name in BLOCK
  ]
  names += [f"out_blocks.{i}.{name}" for i in (0, 1) for name in BLOCK + SKIP]
  names += ["pos_embed"] + ENDS + HEAD * net.head_conv + ["label_emb.weight"] * len(net.classes)
  assert sorted(state) == sorted(names)
  assert state["pos_embed"].shape == (1, 17 + len(net.classes), 32)
  assert state["patch_embed.proj.weight"].shape == (32, 3, 2, 2)
  assert state["mid_block.attn.qkv.weight"].shape == (96, 32)
  assert state["out_blocks.1.skip_linear.weight"].shape == (32, 64)
  back = uvit_weights.from_state_dict(state, tiny_unet.shapes(net))
  jax.tree.map(np.testing.assert_array_equal, back, params)
  theirs = torch_uvit.UViT(net).state_dict()
  arrays = {name: leaf.numpy() for name, leaf in theirs.items()}
  again = uvit_weights.to_state_dict(uvit_weights.from_state_dict(arrays, tiny_unet.shapes(net)))
  assert again.keys() == theirs.keys()
  jax.tree.map(np.testing.assert_array_equal, again, arrays)


@pytest.mark.parametrize(
  ("held", "wanted", "message"),
  [
    ({}, {"head_conv": False}, "hold 2 arrays .* the first is 'final_layer.bias'"),
    ({}, {"sample_size": 16}, r"'pos_embed' is \(1, 17, 32\) in the weights and \(1, 65, 32\)"),
    ({}, {"depth": 4}, "have no 'in_blocks.1.attn.proj.bias'"),
  ],
)
def test_weights_of_another_size_are_refused(held, wanted, message):
  state = uvit_weights.to_state_dict(tiny_unet.random_params(uvit.Net(**TINY | held)))
  with pytest.raises(ValueError, match=message):
    uvit_weights.from_state_dict(state, tiny_unet.shapes(uvit.Net(**TINY | wanted)))


def test_initial_weights():
  net = uvit.Net(**TINY | {"classes": (99,), "width": 64})
  params = jax.jit(net.init)(jax.random.key(0, impl="unsafe_rbg"))  # compiles in no time
  normal = lambda leaf, std: np.testing.assert_allclose(
    [leaf.mean(), leaf.std()], [0, std], atol=std / 8
  )
  for block in (params["in_blocks_0"], params["out_blocks_0"]):
    for part, layer in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")):
      normal(block[part][layer]["kernel"], 0.02)
    assert not np.any(block["mlp"]["fc1"]["bias"]) and np.all(block["norm1"]["scale"] == 1)
  normal(params["out_blocks_0"]["skip_linear"]["kernel"], 0.02)
  normal(params["pos_embed"], 0.02)
  normal(params["decoder_pred"]["kernel"], 0.02)
  normal(embeddings.table(params, 0), 1)
  for conv, bound in ((params["patch_embed"]["proj"], 12**-0.5), (params["final_layer"], 27**-0.5)):
    for leaf in (conv["kernel"], conv["bias"]):
      assert 0.3 * bound < np.abs(leaf).max() <= bound
    np.testing.assert_allclose(conv["kernel"].std(), bound / 3**0.5, rtol=0.15)


# Parity: the output and the gradient of every parameter, to 1e-5.

PARITY = {  # of two long skips in the first, one in the others
  "discrete": {"depth": 4},
  "vpsde": {"time": "vpsde"},
  "no head convolution": {"head_conv": False, "in_channels": 4},
  "one patch of four": {"patch_size": 4, "in_channels": 1, "heads": 1},
  "one condition": {"classes": (5,)},
  "two conditions": {"classes": (3, 2)},
}


@pytest.mark.parametrize("case", PARITY)
def test_equals_an_independent_pytorch_module(case):
  net = uvit.Net(**TINY | PARITY[case])
  params, c = tiny_unet.random_params(net), ROWS[net.classes]
  apply = lambda params, x, t: net.apply(params, x, t, of(c))
  model = in_torch(net, params, c)
  unet_parity.check(apply, params, uvit_weights.to_state_dict, model, net.image_shape, T)


@pytest.mark.parametrize("classes", [(), (5,)])
def test_prompts_equal_tokens_that_join_and_leave_each_block(classes):
  net = uvit.Net(**TINY, classes=classes)
  params, c = tiny_unet.random_params(net), ROWS[classes]
  params = {**params, "prompts": random_prompts(net)}
  apply = lambda params, x, t: net.apply(params, x, t, of(c), params["prompts"])
  model = in_torch(net, params, c, prompts=3)
  unet_parity.check(apply, params, uvit_weights.to_state_dict, model, net.image_shape, T)


def test_features_are_all_tokens_behind_the_middle_block():
  net = uvit.Net(**TINY, classes=(5,))
  params, c = tiny_unet.random_params(net), ROWS[(5,)]
  *_, x, t = tiny()
  model = in_torch(net, params, c)
  with torch.no_grad():
    model(torch.tensor(nchw(x)), torch.tensor(t))
  got = jax.jit(net.features)(params, x, t, of(c))
  assert got.shape == (3, 2 + 16, 32)
  assert distance(np.asarray(got), model.middle.numpy()) < 1e-5


# Promises.


def test_prompts_of_each_row():
  apply, params, x, t = tiny()
  net = uvit.Net(**TINY)
  prompts = random_prompts(net, 3)
  got = apply(params, x, t, None, prompts)
  for i in range(3):
    want = apply(params, x, t, None, prompts[i])[i]
    np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)
  assert distance(np.asarray(got), np.asarray(apply(params, x, t))) > 1e-2


def test_every_block_reads_its_prompts():
  apply, params, x, t = tiny()
  prompts = random_prompts(uvit.Net(**TINY))
  want = np.asarray(apply(params, x, t, None, prompts))
  for block in range(len(prompts)):
    moved = prompts.copy()
    moved[block] += np.random.default_rng(block).normal(size=prompts[block].shape)
    assert distance(np.asarray(apply(params, x, t, None, moved)), want) > 1e-4, block


def test_stacked_parameters_are_networks_side_by_side_without_a_convolution():
  apply, _, x, t = tiny()
  net = uvit.Net(**TINY)
  each = [tiny_unet.random_params(net, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
  every = jax.vmap(net.apply, (0, None, None))
  assert "conv_general_dilated" not in str(jax.make_jaxpr(every)(stacked, x, t))
  for got, params in zip(jax.jit(every)(stacked, x, t), each, strict=True):
    assert distance(np.asarray(got), np.asarray(apply(params, x, t))) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_types_at_any_compute_type(dtype):
  net = uvit.Net(**TINY, classes=(5,), dtype=dtype)
  shapes = tiny_unet.shapes(net)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
  x, t = jnp.zeros((3, *net.image_shape)), jnp.zeros(3, jnp.int32)
  for apply, shape in ((net.apply, x.shape), (net.features, (3, 18, 32))):
    y = jax.eval_shape(apply, shapes, x, t)
    assert (y.shape, y.dtype) == (shape, jnp.float32)


def test_bfloat16_compute_is_near_float32():
  apply, params, x, t = tiny()
  apply_bf16, *_ = tiny(dtype="bfloat16")
  assert (
    1e-4 < distance(np.asarray(apply_bf16(params, x, t)), np.asarray(apply(params, x, t))) < 5e-2
  )


def test_a_row_depends_on_its_own_image_time_and_condition_alone():
  apply, params, x, t = tiny(classes=(5,))
  c = np.array([1, 2, 3], np.int32)
  y = np.asarray(apply(params, x, t, c))
  other_x, other_t, other_c = x.copy(), t.copy(), c.copy()
  other_x[0], other_t[1], other_c[2] = 0, 3, 4
  for row, changed in enumerate(((other_x, t, c), (x, other_t, c), (x, t, other_c))):
    got = np.asarray(apply(params, *changed))
    others = np.arange(3) != row
    np.testing.assert_allclose(got[others], y[others], rtol=1e-5, atol=1e-6)
    assert distance(got[row], y[row]) > 1e-3


@pytest.mark.parametrize("time", uvit.TIMES)
def test_float_times_continue_the_whole_ones(time):
  apply, params, x, _ = tiny(time=time)
  at = lambda *t: np.asarray(apply(params, np.repeat(x[:1], 3, axis=0), np.array(t)))
  np.testing.assert_array_equal(at(*np.float32([3, 4, 5])), at(*np.int32([3, 4, 5])))
  y = at(*np.float32([300, 300.5, 301]))
  assert distance(y[1], y[0]) > 1e-5 and distance(y[1], y[2]) > 1e-5
  assert distance(y[1], y[0]) < distance(y[2], y[0])


@pytest.mark.parametrize("classes", [c for c in ROWS if c])
def test_null_is_the_last_row_of_each_table_and_what_no_condition_means(classes):
  apply, params, x, t = tiny(classes=classes)
  c = np.array(ROWS[classes], np.int32)
  null = np.asarray(apply(params, x, t, np.full_like(c, NULL)))
  np.testing.assert_array_equal(apply(params, x, t, None), null)
  last = np.broadcast_to(np.int32(classes), (3, len(classes))).reshape(c.shape)
  np.testing.assert_array_equal(apply(params, x, t, last), null)
  assert distance(np.asarray(apply(params, x, t, np.zeros_like(c))), null) > 1e-3


@pytest.mark.parametrize(
  ("classes", "shape"), [((5,), (2,)), ((5,), (3, 1)), ((3, 2), (3,)), ((3, 2), (3, 3))]
)
def test_conditions_of_another_shape_are_refused(classes, shape):
  apply, params, x, t = tiny(classes=classes)
  says = rf"conditions are {re.escape(str(shape))}; give {len(classes)} for each of 3 images"
  with pytest.raises(ValueError, match=says):
    apply(params, x, t, np.zeros(shape, np.int32))


def test_a_condition_of_an_unconditional_network_is_refused():
  apply, params, x, t = tiny()
  with pytest.raises(ValueError, match="unconditional"):
    apply(params, x, t, t)


@pytest.mark.parametrize("shape", [(2, 3, 32), (3, 3, 16), (3, 2, 3, 32)])
def test_prompts_of_another_shape_are_refused(shape):
  apply, params, x, t = tiny()
  with pytest.raises(ValueError, match=rf"{re.escape(str(shape))}; give .3 blocks, tokens, 32"):
    apply(params, x, t, None, np.zeros(shape, np.float32))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"sample_size": 9}, "sample_size 9 .* patch_size 2; use a multiple"),
    ({"patch_size": 0}, "patch_size is 0; use a whole number, 1 or more"),
    ({"heads": 0}, "heads is 0; use a whole number, 1 or more"),
    ({"width": 34}, "width 34 does not divide into heads 4 .* use a multiple of 4"),
    ({"width": 33, "heads": 3}, "width 33 .* heads 3 and into sines .* use a multiple of 6"),
    ({"depth": 3}, "depth is 3; use an even number"),
    ({"depth": 0}, "depth is 0; use a whole number, 2 or more"),
    ({"classes": [10, 0]}, r"classes is \(10, 0\); use whole numbers, 1 or more"),
    ({"time": "vpsd"}, "no time 'vpsd' .did you mean 'vpsde'"),
    ({"dtype": "bfloat"}, "no dtype 'bfloat' .did you mean 'bfloat16'"),
    ({"blocks": 3}, "model uvit has no field 'blocks'"),
  ],
)
def test_wrong_fields_say_the_rule(fields, message):
  with pytest.raises(ValueError, match=message) as error:
    models.make("uvit", **TINY | fields)
  assert "\n" not in str(error.value)


def test_is_chosen_by_name_and_hashable():
  made = models.make("uvit", **TINY, classes=[5])
  assert made is models.make("uvit", **dataclasses.asdict(made)) and made.classes == (5,)
