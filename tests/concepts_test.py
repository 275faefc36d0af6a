"""Erasers by prompt: each beside PyTorch or NumPy on a tiny pipeline, with the same draws."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from configs import common
from jaxunlearn import build, data, methods, step, streams
from jaxunlearn.diffusion import NULL, Diffusion
from jaxunlearn.methods import esd, importance, uce
from jaxunlearn.reports import subject
from jaxunlearn.weights import pretrained
from tests import pets, tiny_pipeline, toys
from tests.unet_parity import nchw

CLASSES = ("a hand", "a red whale", "the emoji")  # sorted, as their numbers
FORGET = 1
KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """(a pipeline's folder, the pipeline, a folder of six captioned pictures, a cache)."""
  model, pictures, cache = (tmp_path_factory.mktemp(name) for name in ("model", "data", "cache"))
  pipe, lines = tiny_pipeline.write(model), []
  for i in range(6):
    pixels = np.full((16, 16, 3), 40 * i, np.uint8)
    Image.fromarray(pixels).save(pictures / f"{i}.png")
    lines.append(json.dumps({"file_name": f"{i}.png", "text": CLASSES[i % 3]}))
  (pictures / "metadata.jsonl").write_text("\n".join(lines) + "\n")
  return model, pipe, pictures, cache


@pytest.fixture
def setup_of(places, monkeypatch):
  """setup_of(method, streams, pattern, fields) -> the setup of a run that forgets a prompt."""
  model, _, pictures, cache = places
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(cache))

  def make(name, takes, pattern, prefix=0, **fields):
    config = common.get_config()
    config.init_from = str(model)
    with config.unlocked():
      config.model, config.prompts = {"name": "pretrained"}, {"prefix": prefix}
    config.data = common.source("captions", path=str(pictures), size=16)
    config.forget.label = CLASSES[FORGET]
    config.method = common.method(name, **fields)
    config.streams = {"x": "retain", **takes}
    config.trained.pattern = pattern
    config.mesh.data = 1
    config.train.update(steps=2, batch=4)
    config.eval.update(before=False, after=False, metrics=(), samples=4, batch=4, steps=2)
    return build.build(config)

  return make


def states(pipe, texts):
  """The states of texts by transformers, and the place of the last token of each."""
  whole = {"padding": "max_length", "max_length": tiny_pipeline.LENGTH, "return_tensors": "pt"}
  ids = pipe.tokenizer(list(texts), truncation=True, **whole).input_ids
  with torch.no_grad():
    found = pipe.text_encoder(ids)[0]
  return found, [len(pipe.tokenizer.tokenize(text)) for text in texts]


def close(got, want, rtol=1e-4):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.max(np.abs(want)))


# UCE.


def test_uce_is_the_minimum_of_its_squares():
  """lam ||W - W0||^2 + s_e ||W c - v||^2 + s_p ||W c_j - W0 c_j||^2: no slope there."""
  rng = np.random.default_rng(0)
  w, c, guide, kept = (rng.normal(size=size) for size in ((7, 5), (2, 7), (2, 7), (3, 7)))
  method = uce.Method(erase=0.7, preserve=1.3, lam=0.2)
  got = np.float64(method.solved(w, c, guide, kept))
  slope = 0.2 * (got - w) + 0.7 * c.T @ (c @ got - guide @ w) + 1.3 * kept.T @ (kept @ (got - w))
  assert np.abs(slope).max() < 1e-5 and np.abs(got - w).max() > 0.1


def test_uce_with_little_weight_on_the_old_gives_the_guides_values():
  rng = np.random.default_rng(1)
  w, c, guide = (rng.normal(size=size) for size in ((7, 5), (1, 7), (1, 7)))
  got = uce.Method(lam=1e-6).solved(w, c, guide, rng.normal(size=(0, 7)))
  close(c @ np.float64(got), guide @ w)


@pytest.mark.parametrize("spelt", [False, True])
def test_uce_edits_keys_and_values_as_its_formula_in_pytorch(setup_of, places, spelt):
  _, pipe, _, _ = places
  fields = {"concept": "whale", "guide": "", "keep": ("a hand",)} if spelt else {}
  to = "null" if spelt else "next"
  setup = setup_of("uce", {"a": {"take": "forget", "to": to}}, "attn2_kv", **fields)
  before = build.start_params(setup)
  state = build.make_state(setup, before)
  texts = ("whale", "", "a hand") if spelt else (CLASSES[1], CLASSES[2], CLASSES[0], CLASSES[2])
  found, last = states(pipe, texts)
  c, guide, *kept = (row[place].double() for row, place in zip(found, last, strict=True))
  outer = lambda u, v: u[:, None] * v[None]
  edited = pretrained.to_state_dict(state.params["unet"])
  seen = 0
  for name, layer in pipe.unet.named_modules():
    if name.endswith(("attn2.to_k", "attn2.to_v")):
      w = layer.weight.detach().double()
      right = 0.5 * w + outer(w @ guide, c) + sum(outer(w @ k, k) for k in kept)
      left = 0.5 * torch.eye(len(c)) + outer(c, c) + sum(outer(k, k) for k in kept)
      close(edited[f"{name}.weight"], (right @ torch.linalg.inv(left)).numpy())
      seen += 1
  assert seen == len(edited) == 8
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen), setup.split(before)[1])


def test_an_empty_guide_is_the_start_tokens_state(setup_of, places):
  """Which all prompts share."""
  setup = setup_of("uce", {"a": {"take": "forget", "to": "next"}}, "attn2_kv")
  text = build.encoder(setup, build.start_params(setup))
  found, _ = states(places[1], ["", "the emoji"])
  np.testing.assert_allclose(text.last([""])[0], found[0, 0], atol=1e-5)
  np.testing.assert_allclose(found[0, 0], found[1, 0], atol=1e-6)
  close(text.last(np.array([[2]]))[0], text.last(["the emoji"])[0])


def test_uce_without_its_matrices_is_refused(setup_of):
  setup = setup_of("uce", {"a": {"take": "forget", "to": "next"}}, "attn1")
  with pytest.raises(ValueError, match=r"uce writes attn2/to_k and .*; set config.trained.pattern"):
    build.make_state(setup, build.start_params(setup))


# Concept Ablation.


def test_an_anchors_picture_has_the_prompt_to_forget_and_its_own(setup_of):
  alt = {"take": "retain", "c": "forget", "to": "own"}
  rows = setup_of("concept_ablation", {"alt": alt}, "attn2_kv").streams["alt"].pick(9, 0)
  assert rows.c.tolist() == [FORGET] * 4 and sorted(rows.to.tolist()) == [0, 0, 2, 2]


def test_own_is_one_of_the_labels_of_a_record_that_has_several():
  records = pets.records()
  also = np.stack([records.label, 3 + records.label], axis=1).astype(np.int32)
  many = streams.Stream(
    records=dataclasses.replace(records, also=also, classes=tuple("abcdef")),
    index=np.arange(30),
    batch=4,
    seed=(0,),
    conditional=True,
    take=streams.Take("retain", c="forget", to="own"),
    concept=data.Concept(0, 1),
    shown=data.Concept(0, 1),
    counts=(6,),
  )
  c, to = many.told()
  assert set(c.tolist()) == {1} and ((to == also[:30, 0]) | (to == also[:30, 1])).all()
  assert {True, False} == set((to > 2).tolist())


@pytest.mark.parametrize("form", ["model", "noise"])
def test_concept_ablation_is_its_loss_in_pytorch(setup_of, places, form):
  _, pipe, _, _ = places
  alt = {"take": "retain", "c": "forget", "to": "own"}
  setup = setup_of("concept_ablation", {"alt": alt}, "attn2_kv", form=form, lam=0.5)
  params, frozen = setup.split(build.start_params(setup))
  rng = np.random.default_rng(2)
  normal = lambda: rng.normal(size=(3, 8, 8, 4)).astype(np.float32)
  c, to, t = (np.array(v, np.int32) for v in ([FORGET] * 3, [0, 2, 0], [10, 400, 900]))
  draws = {"alt": normal(), "c": c, "to": to, "t": t, "eps": normal()}
  draws = jax.tree.map(jnp.asarray, draws)
  grads, metrics = jax.jit(
    lambda p: setup.method.gradients(
      setup.predictor(frozen).bound(frozen), p, setup.process, draws, {}
    )
  )(params)
  direction, _ = setup.method.combine(grads, {})

  found, _ = states(pipe, CLASSES)
  alt_t = setup.process.q_sample(draws["alt"], draws["t"], draws["eps"])
  x_t, noise = (torch.tensor(nchw(np.asarray(v))) for v in (alt_t, draws["eps"]))
  ask = lambda c: pipe.unet(x_t, torch.tensor(t), found[c.tolist()]).sample
  of_rows = lambda a, b: ((a - b) ** 2).sum(dim=(1, 2, 3)).mean()
  with torch.no_grad():
    target = noise if form == "noise" else ask(to)
  loss, kept = of_rows(ask(c), target), of_rows(ask(to), noise)
  pipe.unet.zero_grad()
  (loss + 0.5 * kept).backward()
  close([metrics["loss_alt"], metrics["loss_x"]], [loss.item(), kept.item()])
  for name, grad in pretrained.to_state_dict(direction["unet"]).items():
    close(grad, pipe.unet.get_parameter(name).grad.numpy(), rtol=1e-3)


def test_a_run_that_shows_others_under_the_prompt_to_forget_unlearns():
  alt = {"take": "retain", "c": "forget", "to": "own"}
  config = {"forget": {"style": "ink"}, "init_from": "x", "train": {"steps": 3}}
  config |= {"method": {"name": "concept_ablation"}, "streams": {"alt": alt}}
  assert subject.kind(config) == "unlearning"
  assert "Concept Ablation" in subject.title(config)
  assert subject.kind(config | {"streams": {"alt": "retain"}}) == "training"
  named = {"forget": {"file": "forget.txt"}, "streams": {"alt": {**alt, "c": "class:a whale"}}}
  assert subject.kind(config | named) == "unlearning"


def test_a_form_that_is_none_is_refused():
  with pytest.raises(ValueError, match=r"no form of concept ablation 'nois'.*mean 'noise'"):
    methods.make("concept_ablation", form="nois")


# ESD from samples stopped midway.

PROCESS = Diffusion(T=100, beta_T=0.2)
SHAPE = (3, 3, 2)
PARAMS = toys.linear_params(SHAPE, 4)


@functools.cache
def midway(count=5):
  image = np.zeros((6, *SHAPE), np.float32)
  rows = methods.Rows(image, np.array([3, 1, 3, 1, 3, 1], np.int32), np.arange(6))
  method = esd.Method(partial=count, partial_steps=10, partial_guidance=2.0, partial_batch=2)
  return method, method.prepare(toys.linear, PARAMS, PROCESS, {"a": rows}, KEY)


def test_samples_are_those_of_the_frozen_model_stopped_midway():
  """DDIM by its formula in float64, guided, without a clip, over times that are offset by one."""
  _, extras = midway()
  theta, abar = toys.flat(PARAMS), PROCESS.abar
  times = np.arange(0, 100, 10)[::-1] + 1
  made = jax.device_get(extras["made"])
  assert made["a_t"].shape == (5, *SHAPE) and set(made["t"].tolist()) <= set(times.tolist())
  for i in range(5):
    first = i - i % 2
    k_x, _ = jax.random.split(jax.random.fold_in(KEY, first))
    x = np.float64(jax.random.normal(k_x, (2, *SHAPE)))[i - first : i - first + 1]
    for t in times[times > made["t"][i]]:
      of = lambda c, x=x: toys.linear_eps(theta, x, np.array([c]))
      eps = 3 * of(made["c"][i]) - 2 * of(NULL)
      x0 = (x - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
      s = abar[t - 10] if t > 10 else abar[0]
      x = np.sqrt(s) * x0 + np.sqrt(1 - s) * eps
    close(made["a_t"][i], x[0], rtol=1e-3)


def test_each_sample_is_used_once_before_any_is_used_again():
  method, extras = midway()
  image = jnp.zeros((2, *SHAPE))
  rows = methods.Rows(image, jnp.zeros(2, jnp.int32))
  turn = [
    np.asarray(method.draw(PROCESS, {"a": rows}, KEY, extras, jnp.int32(step))["a_t"])
    for step in range(5)
  ]
  np.testing.assert_array_equal(np.concatenate(turn)[:5], extras["made"]["a_t"])
  np.testing.assert_array_equal(np.concatenate(turn)[5:], extras["made"]["a_t"])


def test_esd_on_a_sample_goes_where_the_frozen_model_points_away():
  method, extras = midway()
  rows = methods.Rows(jnp.zeros((4, *SHAPE)), jnp.zeros(4, jnp.int32))
  draws = method.draw(PROCESS, {"a": rows}, KEY, extras, jnp.int32(0))
  moved = toys.linear_params(SHAPE, 4, seed=1)
  (grad,), metrics = method.gradients(toys.linear, moved, PROCESS, draws, extras)
  a_t, c = np.float64(draws["a_t"]), np.asarray(draws["c"])
  frozen = lambda c: toys.linear_eps(toys.flat(PARAMS), a_t, c)
  null = frozen(np.full(4, NULL))
  want = toys.linear_loss(toys.flat(moved), a_t, c, null - (frozen(c) - null))
  close(metrics["loss_a"], want[0])
  close(toys.flat(grad), want[1])


# A prompt that is searched for.


def test_a_prompt_is_searched_for_and_all_else_is_frozen(setup_of):
  takes = {"a": {"take": "forget"}}
  setup = setup_of("unlearn_diff_attack", takes, "^prefix$", prefix=2)
  state = build.make_state(setup, build.start_params(setup))
  assert state.params.keys() == {"prefix"} and state.frozen.keys() == {"unet", "text_encoder"}
  first = np.asarray(state.params["prefix"])
  assert first.shape == (2, setup.net.text.vocab_size)
  moved, metrics = step.make_update(setup, state)(state, setup.batch(0))
  found = np.asarray(moved.params["prefix"])
  np.testing.assert_allclose([first.sum(axis=1), found.sum(axis=1)], 1, rtol=1e-5)
  assert (found >= 0).all() and np.abs(found - first).max() > 0 and metrics["grad_norm"] > 0


@pytest.mark.parametrize(
  ("pattern", "prefix", "error"),
  [
    ("^unet/", 0, "searches for tokens and there are none; set config.prompts.prefix to 5"),
    ("^prefix$", 10, "config.prompts.prefix is 10 and a prompt has room for 9; use at most that"),
  ],
)
def test_a_search_without_tokens_or_room_is_refused(setup_of, pattern, prefix, error):
  with pytest.raises(ValueError, match=error):
    setup = setup_of("unlearn_diff_attack", {"a": "forget"}, pattern, prefix=prefix)
    build.make_state(setup, build.start_params(setup))


# The others, on prompts.

PREPARED = [
  name
  for name in methods.names()
  if type(methods.make(name)).prepare is not methods.Objective.prepare and "embedding" not in name
]
FEW = {"mask_rows": 2, "mask_batch": 2, "fisher_rows": 1, "neighbours": 1}


@pytest.mark.parametrize("name", PREPARED)
def test_what_a_method_prepares_and_its_step_are_of_latents_and_prompts(
  setup_of, monkeypatch, name
):
  """Traced, not compiled; the others are in text_to_image_test.py."""
  monkeypatch.setattr(importance, "largest", lambda tree, share: jax.tree.map(jnp.isfinite, tree))
  method = methods.make(name)
  fields = {key: value for key, value in FEW.items() if hasattr(method, key)}
  takes = {s: "all" if s == "all" else "retain" for s in method.streams}
  takes |= {"a": {"take": "forget", "to": "next"}}
  setup = setup_of(name, takes, "attn2", **fields)
  whole = build.start_params(setup)
  params, frozen = setup.split(whole)
  batch = setup.host_batch(0)
  apply = setup.predictor(frozen).bound(frozen)

  def whole_step(params, batch):
    extras = setup.method.prepare(apply, params, setup.process, setup.streams, KEY)
    draws = setup.method.draw(setup.process, batch, KEY, extras, jnp.int32(0))
    grads, _ = setup.method.gradients(apply, params, setup.process, draws, extras)
    return methods.direction(setup.method, params, grads, extras)[0]

  found = jax.eval_shape(whole_step, params, batch)
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  assert shapes(found) == shapes(params)
