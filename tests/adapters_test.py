"""Kinds of compartments: what they start as, what they count, and what they leave alone."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import adapters
from jaxunlearn.adapters import Full, Lora, Prompts, Subset
from jaxunlearn.diffusion import NULL
from jaxunlearn.models import clip, text_to_image, uvit
from tests import nets, tiny_unet
from tests.unet_parity import distance

NET = uvit.Net(sample_size=4, patch_size=2, width=16, depth=2, heads=2, classes=(4,))
PLAIN = uvit.Net(sample_size=4, patch_size=2, width=16, depth=2, heads=2)
TWO = uvit.Net(sample_size=4, patch_size=2, width=16, depth=2, heads=2, classes=(4, 2))
S_2 = uvit.Net(classes=(10,))  # of CIFAR-10
KINDS = {
  "full": Full(),
  "subset": Subset("mlp"),
  "prompts": Prompts(tokens=3),
  "prompts per class": Prompts(per_class=2),
  "lora": Lora(rank=2, alpha=3),
}
ADAPTERS = {name: kind for name, kind in KINDS.items() if name != "full"}
T = np.array([0, 421, 999], np.int32)
C = np.array([3, NULL, 0], np.int32)

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_adapter = pytest.mark.parametrize("kind", ADAPTERS.values(), ids=ADAPTERS)


@functools.cache
def jitted(net):
  return jax.jit(net.apply)


@functools.cache
def case(kind, net=NET):
  """(jitted apply, backbone, random parameters of the kind, images)."""
  rng = np.random.default_rng(0)
  backbone = tiny_unet.random_params(net)
  shapes = jax.eval_shape(lambda key, b: kind.init(key, net, b), jax.random.key(0), backbone)
  params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)
  x = rng.normal(size=(3, *net.image_shape)).astype(np.float32)
  return jax.jit(functools.partial(kind.apply, net)), backbone, params, x


def size(kind, net):
  shapes = lambda key: kind.init(key, net, net.init(key))
  return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(shapes, jax.random.key(0))))


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


# What they start as.


def test_full_starts_as_the_backbone_or_at_random():
  apply, backbone, _, x = case(Full())
  params = Full().init(jax.random.key(1), NET, backbone)
  assert_same(params, backbone)
  assert_same(
    Full().init(jax.random.key(1), nets.Line(), None), nets.Line().init(jax.random.key(1))
  )
  assert_same(apply(None, params, x, T, C), jitted(NET)(backbone, x, T, C))


def test_full_is_of_any_network():
  net = tiny_unet.NET
  params, x = tiny_unet.random_params(net), np.ones((3, *net.image_shape), np.float32)
  got = jax.jit(functools.partial(Full().apply, net, None))(params, x, T)
  assert_same(got, jax.jit(net.apply)(params, x, T))


@pytest.mark.parametrize("kind", [Lora(), Lora(rank=2, alpha=3)], ids=str)
def test_lora_starts_as_the_backbone(kind):
  apply, backbone, _, x = case(kind)
  params = kind.init(jax.random.key(1), NET, backbone)
  assert_same(kind.trained.whole(backbone, params), backbone)
  assert_same(apply(backbone, params, x, T, C), jitted(NET)(backbone, x, T, C))


def test_lora_starts_with_a_of_unit_gain_and_all_different():
  kind = Lora(rank=64)
  params = kind.init(jax.random.key(1), NET, tiny_unet.random_params(NET))
  a = [np.asarray(leaf) for leaf in jax.tree.leaves(params)[::2]]
  assert len(a) == 3 * 4
  for leaf in a:
    np.testing.assert_allclose(leaf.std() * len(leaf) ** 0.5, 1, rtol=0.1)
  assert len({leaf[0, 0] for leaf in a}) == len(a)


def test_prompts_start_small_and_all_different():
  tables = Prompts(per_class=8).init(jax.random.key(1), TWO, tiny_unet.random_params(TWO))
  assert {name: leaf.shape for name, leaf in tables.items()} == {
    "prompts_0": (5, 3, 8, 16),
    "prompts_1": (3, 3, 8, 16),
  }
  values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tables)])
  np.testing.assert_allclose(values.std(), 0.02, rtol=0.1)
  assert len(np.unique(values)) == values.size


# What they compute.


def test_lora_merged_equals_unmerged():
  """Every product x W of a block is x W + (alpha / rank) (x A) B, in float64 NumPy."""
  apply, backbone, params, x = case(Lora(rank=2, alpha=3))
  met = []

  def beside(call, args, kwargs, context):
    y, place = call(*args, **kwargs), context.module.path
    own = functools.reduce(lambda tree, name: tree.get(name, {}), place, params)
    if not (isinstance(context.module, nn.Dense) and own):
      return y
    met.append("/".join(place))
    h = np.asarray(args[0], np.float64) @ own["a"] @ own["b"]
    return y + jnp.asarray(3 / 2 * h, jnp.float32)

  with nn.intercept_methods(beside):
    want = NET.apply(backbone, jnp.array(x), jnp.array(T), jnp.array(C))
  layers = ("attn/proj", "attn/qkv", "mlp/fc1", "mlp/fc2")
  blocks = ("in_blocks_0", "mid_block", "out_blocks_0")
  assert sorted(met) == [f"{block}/{layer}" for block in blocks for layer in layers]
  got = np.asarray(apply(backbone, params, x, T, C))
  assert distance(got, np.asarray(want)) < 1e-6
  assert distance(got, np.asarray(jitted(NET)(backbone, x, T, C))) > 1e-2


def test_lora_moves_the_kernels_of_blocks_alone():
  kind = Lora(rank=2, alpha=3)
  _, backbone, params, _ = case(kind)
  merged = kind.trained.whole(backbone, params)
  moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), merged, backbone)
  paths = {"/".join(k.key for k in path) for path, yes in jax.tree.leaves_with_path(moved) if yes}
  layers = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
  assert paths == {f"{block}/{layer}/kernel" for block in NET.blocks for layer in layers}
  own = params["mid_block"]["attn"]["qkv"]
  change = (
    merged["mid_block"]["attn"]["qkv"]["kernel"] - backbone["mid_block"]["attn"]["qkv"]["kernel"]
  )
  want = 1.5 * own["a"].astype(np.float64) @ own["b"]
  np.testing.assert_allclose(change, want, rtol=1e-4, atol=1e-6)


def test_prompts_are_the_networks():
  apply, backbone, params, x = case(Prompts(tokens=3))
  want = jitted(NET)(backbone, x, T, C, params["prompts"])
  assert_same(apply(backbone, params, x, T, C), want)


@pytest.mark.parametrize("c", [C, None])
def test_prompts_per_class_are_chosen_by_the_rows_condition(c):
  apply, backbone, params, x = case(Prompts(per_class=2))
  got = apply(backbone, params, x, T, c)
  for i, value in enumerate(np.full(3, NULL) if c is None else c):
    mine = params["prompts_0"][4 if value == NULL else value]
    want = jitted(NET)(backbone, x, T, c, mine)[i]
    np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)


def test_prompts_of_one_class_reach_its_rows_alone():
  apply, backbone, params, x = case(Prompts(per_class=2))
  before = np.asarray(apply(backbone, params, x, T, C))
  for value, rows in ((3, [0]), (4, [1]), (0, [2]), (1, [])):
    table = params["prompts_0"].copy()
    table[value] += np.random.default_rng(1).normal(size=table[value].shape)
    after = np.asarray(apply(backbone, {"prompts_0": table}, x, T, C))
    changed = [i for i in range(3) if distance(after[i], before[i]) > 1e-4]
    assert changed == rows
    others = [i for i in range(3) if i not in rows]
    assert_same(after[others], before[others])


def test_prompts_of_two_conditions_stand_side_by_side():
  apply, backbone, params, x = case(Prompts(per_class=2), TWO)
  c = np.array([[3, NULL], [0, 1], [NULL, 0]], np.int32)
  both = [params["prompts_0"][c[:, 0]], params["prompts_1"][c[:, 1]]]  # -1, null, is the last
  want = jitted(TWO)(backbone, x, T, c, np.concatenate(both, axis=2))
  assert_same(apply(backbone, params, x, T, c), want)


# Low rank beside a layer.


def text_to_image_case():
  """(apply, backbone of UNet and text encoder, a book's conditions)."""
  text = clip.Text(12, 24, 1, 2, vocab_size=9, max_position_embeddings=5, end=8)
  book = text_to_image.Book(np.arange(15, dtype=np.int32).reshape(3, 5) % 9)
  net = text_to_image.Net(nets.TEXT_UNET, text, (2,), book)
  return net, nets.random_params(net), jnp.array([0, 1, NULL])


@pytest.mark.parametrize("pattern", ["attention", "attn2", "to_q|text_encoder", "conv1|attn1"])
def test_products_beside_layers_are_those_merged(pattern):
  """On a text-to-image network too, on its text encoder, and on kernels of several pixels."""
  net, backbone, c = text_to_image_case()
  rng, kind = np.random.default_rng(0), Lora(rank=2, alpha=3, pattern=pattern)
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 0.3, (2, *leaf.shape)).astype(np.float32),
    kind.init(jax.random.key(0), net, backbone),
  )
  given = jnp.asarray(rng.normal(size=(3, *net.image_shape)), jnp.float32), jnp.array(T), c
  every = lambda apply: jax.jit(jax.vmap(apply))(params)
  got = every(lambda own: kind.apply(net, backbone, own, *given))
  want = every(lambda own: net.apply(kind.trained.whole(backbone, own), *given))
  assert distance(np.asarray(got), np.asarray(want)) < 1e-5
  plain = net.apply(backbone, *given)
  assert all(distance(np.asarray(own), np.asarray(plain)) > 1e-3 for own in got)


def test_nothing_of_the_size_of_stacked_kernels_is_made():
  """The largest array over the sources is of rows, where merging makes one of kernels."""
  net = uvit.Net(sample_size=4, patch_size=2, width=64, depth=2, heads=2)
  kind, n = Lora(rank=2), 4
  shapes = lambda fn, *args: jax.eval_shape(fn, *args)
  backbone = shapes(net.init, jax.random.key(0))
  one = shapes(lambda b: kind.init(jax.random.key(0), net, b), backbone)
  params = jax.tree.map(lambda s: jax.ShapeDtypeStruct((n, *s.shape), s.dtype), one)
  x, t = (jax.ShapeDtypeStruct(s, d) for s, d in (((1, 4, 4, 3), np.float32), ((1,), np.int32)))

  def made(apply):
    every = lambda b, p, x, t: jax.vmap(lambda own: apply(b, own, x, t))(p)
    program = jax.make_jaxpr(every)(backbone, params, x, t)
    return max(math.prod(v.aval.shape) for line in program.eqns for v in line.outvars)

  beside = made(lambda b, own, x, t: kind.apply(net, b, own, x, t))
  merged = made(lambda b, own, x, t: net.apply(kind.trained.whole(b, own), x, t))
  assert merged >= n * 64 * 256 and beside == 64 * 256  # the one kernel itself


def test_a_network_that_is_no_module_is_merged():
  class Plain:
    apply = staticmethod(lambda params, x, t, c=None: x @ params["layer"]["kernel"])

  rng = np.random.default_rng(0)
  kernel, a, b = (rng.normal(size=s).astype(np.float32) for s in ((3, 3), (3, 2), (2, 3)))
  x = jnp.asarray(rng.normal(size=(1, 2, 2, 3)), jnp.float32)
  kind, own = Lora(rank=2, alpha=2, pattern="layer"), {"layer": {"a": a, "b": b}}
  got = kind.apply(Plain, {"layer": {"kernel": kernel}}, own, x, jnp.zeros(1))
  np.testing.assert_allclose(got, x @ (kernel + a @ b), rtol=1e-5)


# What they leave alone.


@every_kind
def test_no_gradient_reaches_the_backbone(kind):
  _, backbone, params, x = case(kind)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def grads(backbone, params, x):
    return jnp.sum(kind.apply(NET, backbone, params, x, jnp.array(T), jnp.array(C)) ** 2)

  of_backbone, of_params, of_x = grads(backbone, params, x)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_backbone))
  assert all(np.any(leaf) for leaf in jax.tree.leaves(of_params))
  assert np.all(np.any(of_x, axis=(1, 2, 3)))


@every_kind
def test_stacked_ones_are_those_side_by_side(kind):
  apply, backbone, params, x = case(kind)
  each = [jax.tree.map(lambda leaf, s=s: leaf * s, params) for s in np.float32([1, -0.5, 0.25])]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
  every = jax.jit(jax.vmap(functools.partial(kind.apply, NET), (None, 0, None, None, None)))
  for got, own in zip(every(backbone, stacked, x, T, C), each, strict=True):
    assert distance(np.asarray(got), np.asarray(apply(backbone, own, x, T, C))) < 1e-6


@every_kind
def test_init_is_vmapped_over_keys(kind):
  _, backbone, _, _ = case(kind)
  keys = jax.random.split(jax.random.key(0), 2)
  stacked = jax.vmap(lambda key: kind.init(key, NET, backbone))(keys)
  for i, key in enumerate(keys):
    own = kind.init(key, NET, backbone)
    jax.tree.map(
      lambda s, leaf, i=i: np.testing.assert_allclose(s[i], leaf, rtol=1e-6), stacked, own
    )


# What they count.


@pytest.mark.parametrize(
  ("kind", "parameters"),
  [
    (Full(), 44_255_328 + 12 * 512),  # a position for the label, 10 labels and the null
    (Prompts(), 13 * 256 * 512),
    (Prompts(per_class=8), 11 * 13 * 8 * 512),
    (Lora(rank=8), 13 * 8 * (4 + 2 + 5 + 5) * 512),  # I + O of qkv, proj, fc1 and fc2
  ],
  ids=str,
)
def test_how_many_parameters(kind, parameters):
  assert size(kind, S_2) == parameters


# Errors.


@every_adapter
def test_an_adapter_needs_a_backbone(kind):
  with pytest.raises(ValueError, match=r"without a backbone; set config\.init_from"):
    kind.init(jax.random.key(0), NET, None)


def test_prompts_need_a_uvit_and_lora_a_layer_that_its_pattern_finds():
  init = lambda kind: kind.init(jax.random.key(0), tiny_unet.NET, {"conv": {"kernel": np.ones(3)}})
  with pytest.raises(
    ValueError, match=r"unet; only models\.uvit takes some: use the compartment l"
  ):
    init(Prompts())
  with pytest.raises(ValueError, match="pattern 'attention' finds no kernel"):
    init(Lora())


def test_prompts_per_class_need_classes():
  with pytest.raises(ValueError, match="2 prompts per class of an unconditional network; use"):
    Prompts(per_class=2).init(jax.random.key(0), PLAIN, {})


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("lora", {"rank": 0}, "rank is 0; use a whole number, 1 or more"),
    ("prompts", {"tokens": 0}, "tokens is 0; use a whole number, 1 or more"),
    ("prompts", {"per_class": -1}, "per_class is -1; use a whole number, 0 or more"),
    ("lore", {}, "no compartment 'lore' .did you mean 'lora'"),
    ("lora", {"ranks": 1}, "compartment lora has no field 'ranks' .did you mean 'rank'"),
  ],
)
def test_wrong_kinds_say_the_rule(name, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    adapters.make(name, **fields)
  assert "\n" not in str(error.value)


def test_kinds_by_name():
  assert adapters.make("lora", rank=2, alpha=3) == Lora(2, 3)
  assert adapters.make("prompts", per_class=8) == Prompts(per_class=8)
  assert adapters.make("full") == Full()
