"""What a run trains of a network: all, the parameters that a pattern finds, LoRA on its kernels."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import adapters, build, checkpoint, methods, step, train
from jaxunlearn.adapters import PATTERNS, Trained
from jaxunlearn.compiled import topology
from jaxunlearn.models import text_unet
from jaxunlearn.weights import of_run
from tests import methods_test as toys
from tests import nets, tiny_config

KEY = jax.random.key(0)
SUBSET = Trained("class|attn2|prefix")
plain = toys.methods_with(lambda method: type(method).gradients is methods.Objective.gradients)


def paths(tree):
  return {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(tree)}


@functools.cache
def whole():
  return {"unet": nets.random_params(nets.TEXT_UNET)}


@pytest.mark.parametrize("pattern", ["", *PATTERNS, "mid_block.*kernel"])
def test_the_two_parts_make_the_whole_and_nothing_is_in_both(pattern):
  kind = Trained(pattern)
  trained, frozen = kind.split(KEY, whole())
  jax.tree.map(np.testing.assert_array_equal, kind.whole(frozen, trained), whole())
  assert paths(trained) | paths(frozen) == paths(whole())
  assert not paths(trained) & paths(frozen)


def test_what_the_named_patterns_find():
  found = {name: paths(Trained(name).split(KEY, whole())[0]) for name in PATTERNS}
  assert found["attn2_kv"] < found["attn2"]
  assert {path.split("/")[-2] for path in found["attn2_kv"]} == {"to_k", "to_v"}
  assert not found["attn1"] & found["attn2"]
  assert all("attn2" not in path and "norm" not in path for path in found["not_attn2"])
  norms = {path for path in paths(whole()) if "norm" in path}
  assert found["not_attn2"] | found["attn2"] | norms == paths(whole())


def test_the_sizes_of_stable_diffusion_1():
  """Of its published numbers: attn2, its k and v, and LoRA of rank 4 on all attention."""
  shapes = {"unet": jax.eval_shape(text_unet.Net().init, KEY)}
  count = lambda kind: sum(
    leaf.size
    for leaf in jax.tree.leaves(jax.eval_shape(lambda key, w: kind.split(key, w)[0], KEY, shapes))
  )
  assert count(Trained("attn2")) == 43_962_560
  assert count(Trained("attn2_kv")) == 19_169_280
  assert count(Trained(r"/attn[12]/to_", rank=4)) == 797_184
  assert count(Trained(r"/attn2/to_[kv]", rank=1)) == 49_536


def test_lora_starts_as_the_network_and_adds_its_product():
  kind = Trained("attn2", rank=2, alpha=3.0)
  params, frozen = kind.split(KEY, whole())
  jax.tree.map(np.testing.assert_array_equal, kind.whole(frozen, params), whole())
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
  merged = kind.whole(frozen, params)
  block = lambda tree: tree["unet"]["mid_block"]["attentions_0"]["transformer_blocks_0"]
  own, before, after = (block(t)["attn2"]["to_q"] for t in (params, whole(), merged))
  want = before["kernel"] + 1.5 * own["a"].astype(np.float64) @ own["b"]
  np.testing.assert_allclose(after["kernel"], want, rtol=1e-5)
  assert block(merged)["attn1"]["to_q"]["kernel"] is not block(params)
  np.testing.assert_array_equal(
    block(merged)["attn1"]["to_q"]["kernel"], block(whole())["attn1"]["to_q"]["kernel"]
  )


def test_lora_of_a_convolution_is_one_of_few_channels():
  """conv(x, W + s A B) = conv(x, W) + s (conv(x, A) B)."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  kind = Trained("conv", rank=2, alpha=1.0)
  tree = {"conv": {"kernel": draw(3, 3, 4, 5), "bias": draw(5)}}
  params, _ = kind.split(KEY, tree)
  params["conv"]["b"] = draw(2, 5)
  conv = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  x = draw(1, 6, 6, 4)
  got = conv(x, kind.whole(tree, params)["conv"]["kernel"])
  want = conv(x, tree["conv"]["kernel"]) + 0.5 * conv(x, params["conv"]["a"]) @ params["conv"]["b"]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    (
      {"pattern": "attn3"},
      "pattern 'attn3' finds no parameter.* in paths like 'unet/conv_in/bias'",
    ),
    ({"pattern": "bias$", "rank": 2}, r"pattern 'bias\$' finds no kernel"),
    ({"pattern": "("}, r"pattern '\(' is no regular expression .*; use one, or one of: unet"),
    ({"rank": -1}, "rank is -1; use a whole number, 0 or more"),
  ],
)
def test_a_pattern_that_finds_nothing_is_refused(fields, error):
  with pytest.raises(ValueError, match=error):
    Trained(**fields).split(KEY, whole())


@plain
def test_the_gradient_of_a_part_is_that_part_of_the_gradient(name):
  """On the same draws; the loss of frozen parameters has none."""
  setup = toys.make_setup(name)
  part = dataclasses.replace(setup, trained=SUBSET)
  state = build.make_state(part, toys.random_params())
  assert paths(state.params) == {
    *("attn2/to_k/kernel", "class_embedding_0/embedding", "prefix"),
  }
  assert paths(state.frozen) == {"b"}
  draws = toys.drawn(name)
  grads, _ = step.Gradients(step.program(part))(state.params, draws, state.extras, state.frozen)
  full, _ = toys.grads_of(name)
  for got, want in zip(grads, full, strict=True):
    chosen = adapters.part(want, lambda path, _: path != "b")
    toys.assert_trees_close(got, chosen)


def test_a_dry_run_knows_what_is_frozen():
  """The shapes of step 0, without a parameter: those of a run."""
  net = nets.Attentive(width=8)
  part = dataclasses.replace(toys.make_setup("denoising"), net=net, trained=Trained("conv"))
  told, state = topology.state_of(part), build.make_state(part, nets.random_params(net))
  shape = lambda leaf: (leaf.shape, leaf.dtype)
  assert jax.tree.map(shape, told) == jax.tree.map(shape, state)
  assert told.frozen.keys() == {"time", "scale", "q", "k", "v"}


# A run.


@pytest.fixture
def run(monkeypatch):
  monkeypatch.setattr(build.models, "make", lambda **_: nets.Line())

  def run_(workdir, **overrides):
    config = tiny_config.get_config()
    config.update_from_flattened_dict({"train.steps": 4, "train.checkpoint_every": 2, **overrides})
    return config, train.run(config, workdir)

  return run_


def test_a_run_of_a_part_keeps_that_part_alone_and_an_attack_finds_the_whole(run, tmp_path):
  run(tmp_path / "base")
  base = of_run.start(str(tmp_path / "base"), nets.Line(), 0, mesh())
  fields = {"init_from": str(tmp_path / "base"), "trained.pattern": "b"}
  run(tmp_path / "part", **fields)
  saved = checkpoint.read_params(tmp_path / "part", {"b": on_mesh(jnp.zeros(()))})
  found = of_run.start(str(tmp_path / "part"), nets.Line(), 0, mesh())
  np.testing.assert_array_equal(found["b"], saved["b"])
  np.testing.assert_array_equal(found["w"], base["w"])
  assert found["b"] != base["b"]
  config, _ = run(tmp_path / "attack", init_from=str(tmp_path / "part"))
  setup = build.build(config)
  jax.tree.map(np.testing.assert_array_equal, build.start_params(setup), found)


def test_a_stopped_run_of_a_part_goes_on(run, tmp_path):
  run(tmp_path / "whole", **{"trained.pattern": "w"})
  run(tmp_path / "cut", **{"trained.pattern": "w", "train.steps": 2})
  config = json.loads((tmp_path / "cut" / "config.json").read_text())
  config["train"]["steps"] = 4
  (tmp_path / "cut" / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
  run(tmp_path / "cut", **{"trained.pattern": "w"})
  ends = [of_run.start(str(tmp_path / name), nets.Line(), 0, mesh()) for name in ("whole", "cut")]
  jax.tree.map(np.testing.assert_array_equal, *ends)


def test_a_part_of_other_weights_is_refused(run, tmp_path):
  run(tmp_path / "base")
  fields = {"init_from": str(tmp_path / "base"), "trained.pattern": "b"}
  run(tmp_path / "part", **fields)
  run(tmp_path / "other", **{"train.steps": 8})
  (tmp_path / "base" / "checkpoints").rename(tmp_path / "aside")
  (tmp_path / "other" / "checkpoints").rename(tmp_path / "base" / "checkpoints")
  with pytest.raises(checkpoint.WrongShape, match="trained a part of other weights than config"):
    of_run.start(str(tmp_path / "part"), nets.Line(), 0, mesh())


def mesh():
  return build.sharding.make_mesh(1)


def on_mesh(leaf):
  return jax.device_put(leaf, build.sharding.replicated(mesh()))
