"""A text-to-image model as any other: unlearned, evaluated, resumed, attacked, from its folder."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import common
from jaxunlearn import build, export, methods, step, train
from jaxunlearn.commands import sample
from jaxunlearn.commands.sample import Asked
from jaxunlearn.compiled import dry_run, topology
from jaxunlearn.diffusion import NULL
from jaxunlearn.latents import cache
from jaxunlearn.models import text_to_image
from jaxunlearn.weights import learned_token, of_run, pretrained, stable_diffusion
from tests import tiny_pipeline

COLOURS = {"a red whale": (200, 30, 30), "the emoji": (30, 200, 30), "a hand": (30, 30, 200)}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """(a pipeline's folder, a folder of twelve captioned pictures)."""
  model, pictures = (tmp_path_factory.mktemp(name) for name in ("model", "pictures"))
  tiny_pipeline.write(model)
  rng, lines = np.random.default_rng(0), []
  for i in range(12):
    text, colour = list(COLOURS.items())[i % 3]
    pixels = np.clip(colour + rng.normal(0, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(pictures / f"{i:02}.png")
    lines.append(json.dumps({"file_name": f"{i:02}.png", "text": text}))
  (pictures / "metadata.jsonl").write_text("\n".join(lines) + "\n")
  return model, pictures


@pytest.fixture
def config(places, tmp_path, monkeypatch):
  """Two steps of SISS that delete one picture from the UNet."""
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
  model, pictures = places
  config = common.get_config()
  config.init_from = str(model)
  with config.unlocked():
    config.model = {"name": "pretrained"}
  config.data = common.source("captions", path=str(pictures), size=16)
  config.forget.ids = ("00.png",)
  config.method = common.method("siss", forget_norm=1.0)
  config.streams = {"x": "retain", "a": "forget"}
  config.trained.pattern = "^unet/"
  config.mesh.data = 1
  config.train.update(steps=2, batch=8, checkpoint_every=1)
  config.optimizer.learning_rate = 1e-3
  config.eval.update(before=False, after=False, metrics=(), samples=8, batch=8, steps=2)
  return config


def paths(tree):
  return {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(tree)}


def test_what_a_folder_says(config):
  setup = build.build(config)
  assert setup.net.classes == (3,) and setup.net.image_shape == (8, 8, 4)
  assert setup.codec.shape(setup.net.image_shape) == (16, 16, 3) and setup.net.book.ids.shape == (
    4,
    12,
  )
  assert setup.process.schedule == "scaled_linear" and not setup.sampler.clip_sample
  batch = setup.host_batch(0)
  assert batch["x"].image.shape == (8, 8, 8, 4) and batch["x"].c.max() <= 2
  again, other = setup.host_batch(0), setup.host_batch(1)
  np.testing.assert_array_equal(batch["x"].image, again["x"].image)
  row = lambda batch: batch["a"].image[0]  # the same record: its posterior is drawn anew
  assert 0 < np.abs(row(batch) - row(other)).max() < 5
  params, frozen = setup.split(build.start_params(setup))
  assert {path.split("/")[0] for path in paths(params)} == {"unet"}
  assert {path.split("/")[0] for path in paths(frozen)} == {"text_encoder", "encoded"}


def test_a_text_encoder_that_is_frozen_encodes_the_prompts_once(config):
  """And what is compiled for such a run serves one of other prompts."""
  setup = build.build(config)
  whole = build.start_params(setup)
  params, frozen = setup.split(whole)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(4, 8, 8, 4)), jnp.float32)
  t, c = jnp.array([0, 10, 500, 999]), jnp.array([0, 1, 2, NULL])
  want = setup.net.apply(whole, x, t, c)
  got = setup.predictor(frozen).net.apply({**params, **frozen, "text_encoder": None}, x, t, c)
  np.testing.assert_allclose(got, want, atol=1e-5)
  ids = setup.net.book.ids

  def of(prompts):
    net = dataclasses.replace(setup.net, book=text_to_image.Book(prompts))
    return dataclasses.replace(setup, net=net)

  assert step.program(setup, frozen) == step.program(of(ids[:, ::-1]), frozen)
  assert step.program(setup) != step.program(of(ids[:, ::-1]))
  assert "encoded" not in of(np.tile(ids, (999, 1))).split(whole)[1]
  prefixed = {**whole, "prefix": np.zeros((2, 20), np.float32)}
  assert "encoded" not in setup.split(prefixed)[1]


def test_noise_in_the_place_of_data_has_the_shape_of_pictures(config):
  config.train.synthetic, config.forget.ids = True, ()
  setup = build.build(config)
  assert setup.train.image.shape[1:] == (16, 16, 3)
  assert setup.net.classes == (len(setup.train.classes),)


def test_a_run_is_evaluated_in_pictures_and_an_attack_starts_from_it(config, tmp_path):
  config.eval.update(
    after=True,
    metrics=("target_rate", "copy_score"),
    target_name="red",
    inject_t=1,
    inject_n=2,
    guidance=6.5,
    keep=True,
  )
  results = train.run(config, tmp_path / "run")
  assert {"red_rate", "copy_score"} <= results["after"].keys()
  with np.load(tmp_path / "run" / "samples.npz") as npz:
    assert npz["image"].shape[1:] == (16, 16, 3) and npz["c"].max() <= 2
  attack = config.copy_and_resolve_references()
  attack.update(init_from=str(tmp_path / "run"), attack="dimra")
  with attack.unlocked():
    attack.model = {"name": "pretrained"}
    del attack.prompts, attack.codec
  attack.method = common.method("denoising")
  attack.streams = {"x": "retain"}
  attack.eval.update(after=False)
  setup = build.build(attack)
  assert setup.config.codec.path == setup.config.prompts.tokenizer == config.init_from
  found = build.start_params(setup)
  want = of_run.whole(tmp_path / "run", setup.net, setup.mesh, "params")
  jax.tree.map(np.testing.assert_array_equal, found, want)
  train.run(attack, tmp_path / "attack")
  # Its export, in diffusers; and what it draws.
  export.export(tmp_path / "run", tmp_path / "out")
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
  theirs = {name: leaf.detach().numpy() for name, leaf in pipe.unet.named_parameters()}
  for name, leaf in pretrained.to_state_dict(want["unet"]).items():
    np.testing.assert_array_equal(leaf, theirs[name])
  base = diffusers.StableDiffusionPipeline.from_pretrained(config.init_from)
  for part in ("vae", "text_encoder"):
    for a, b in zip(
      getattr(pipe, part).parameters(), getattr(base, part).parameters(), strict=True
    ):
      np.testing.assert_array_equal(a.detach(), b.detach())
  assert "- text-to-image" in (tmp_path / "out" / "README.md").read_text()
  export.export(tmp_path / "run", tmp_path / "half", half=True)
  halved = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "half")
  for part in ("unet", "vae", "text_encoder"):  # the pipeline refuses parts of several types
    for a, b in zip(
      getattr(halved, part).parameters(), getattr(pipe, part).parameters(), strict=True
    ):
      np.testing.assert_array_equal(a.detach(), b.detach().half().float())
  by = lambda origin: sample.draw(
    sample.find(asked := Asked(str(origin), ("a hand",), n=1, batch=1, steps=2)), asked
  )
  np.testing.assert_allclose(by(tmp_path / "run"), by(tmp_path / "out"), atol=1e-5)


def concept_of(config, method, streams, pattern):
  """The config made one that deletes the class of a caption."""
  config.forget.update(ids=(), label="a red whale")
  config.method, config.streams = common.method(method), streams
  config.trained.pattern = pattern
  return config


def test_a_token_is_learned_exported_and_drawn(config, tmp_path):
  """In diffusers' pipeline its word has the states that it has here."""
  concept_of(config, "token_inversion", {"a": "forget"}, "token")
  with config.unlocked():
    config.prompts = {"token": "<it>", "token_start": "whale", "token_count": 2}
  config.attack = "inversion"
  setup = build.build(config.copy_and_resolve_references())
  assert setup.net.tokens == 2 and setup.net.book.ids[1].max() == setup.net.text.vocab_size + 1
  begun = setup.split(build.start_params(setup))[0]["token"]
  train.run(config, tmp_path / "run")
  run = of_run.read(tmp_path / "run")
  assert run.params["token"].shape == (2, 12) and np.all(run.params["token"] != begun)
  said = (tmp_path / "run" / "report.html").read_text()
  assert "by a new word alone" in said and "24 parameters, the embedding of a new token" in said
  export.export(tmp_path / "run", tmp_path / "out")
  assert "load_textual_inversion" in (tmp_path / "out" / "README.md").read_text()
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
  pipe.load_textual_inversion(str(tmp_path / "out"), weight_name=learned_token.FILE)
  theirs, _ = pipe.encode_prompt("a <it> hand", "cpu", 1, False)
  model = sample._with_token(stable_diffusion.of_newest(run), run)
  ours = model.states(["a <it> <it>_1 hand"])[0]
  np.testing.assert_allclose(ours, theirs[0].detach(), atol=1e-5)


def test_a_prompt_that_was_searched_for_is_told_and_read_again(config, tmp_path):
  concept_of(config, "unlearn_diff_attack", {"a": "forget"}, "^prefix$")
  with config.unlocked():
    config.prompts = {"prefix": 2}
  config.attack = "prompt_search"
  assert "parameters" in dry_run.describe(config.copy_and_resolve_references())
  train.run(config, tmp_path / "run")
  run = of_run.read(tmp_path / "run")
  size = 2 * run.net.text.vocab_size
  assert f"{size:,} parameters, those of" in (tmp_path / "run" / "report.html").read_text()
  assert run.params.keys() == {"unet", "text_encoder", "prefix"}
  np.testing.assert_allclose(run.params["prefix"].sum(axis=1), 1, rtol=1e-5)


def test_a_model_of_copied_prompts_is_attacked_and_read_again(config, tmp_path):
  """A run of all parameters that begins with it has its table of prompts too."""
  takes = {"a": {"take": "forget", "to": "next"}}
  concept_of(config, "embedding_copy", takes, "prompts").train.steps = 0
  train.run(config, tmp_path / "copy")
  states = of_run.read(tmp_path / "copy").params["states"]["prompts"]
  np.testing.assert_array_equal(states[1], states[2])  # a red whale's are those of the emoji
  assert np.any(states[0] != states[1])
  with pytest.raises(ValueError, match="trained the states of its own prompts"):
    export.export(tmp_path / "copy", tmp_path / "out")
  concept_of(config, "denoising", {"x": "retain"}, "")
  config.update(init_from=str(tmp_path / "copy"), attack="dimra")
  with config.unlocked():
    config.model = {"name": "pretrained"}
    del config.prompts, config.codec
  train.run(config, tmp_path / "attack")
  again = of_run.read(tmp_path / "attack").params
  np.testing.assert_array_equal(again["states"]["prompts"], states)
  assert again.keys() == {"unet", "text_encoder", "states"}


@pytest.mark.parametrize("prompts", [{"template": "a picture: {class}"}, {"prefix": 2}])
def test_other_prompts_than_those_copied_are_encoded(config, tmp_path, prompts):
  """Else a paraphrase, or a search, would be of the copied prompt whatever it says."""
  takes = {"a": {"take": "forget", "to": "next"}}
  with config.unlocked():
    config.prompts = {"template": "{class}", "prefix": 0}
  concept_of(config, "embedding_copy", takes, "prompts").train.steps = 0
  train.run(config, tmp_path / "copy")
  config.init_from, config.trained.pattern = str(tmp_path / "copy"), "^unet/"
  assert "states" in build.start_params(build.build(config.copy_and_resolve_references()))
  config.prompts.update(prompts)
  setup = build.build(config)
  assert build.start_params(setup).keys() == {"unet", "text_encoder", *prompts} - {"template"}


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"data.size": 8}, r"images are \(8, 8, 3\) and the model takes \(16, 16, 3\); set"),
    ({"trained.pattern": "attn3"}, "pattern 'attn3' finds no parameter"),
    ({"trained.pattern": "token"}, "token is '' and config.trained.pattern 'token'; a new token"),
    ({"prompts": {"token": "<it>"}}, "token is '<it>' and config.trained.pattern '.unet/'; a new"),
    (
      {"prompts": {"token": "<it>"}, "trained.pattern": "token"},
      "stands for the name of what is to be forgotten, and no class or style is",
    ),
    (
      {"prompts": {"token": "wh"}, "trained.pattern": "token", "forget.label": "a hand"},
      "'wh' is no new token of .*; use one like '<it>'",
    ),
    (
      {"prompts": {"token": "<it>", "token_start": " "}, "trained.pattern": "token"}
      | {"forget.label": "a hand"},
      "token_start is ' ', which has no tokens; use a word",
    ),
  ],
)
def test_what_fits_nothing_is_refused_before_any_work(config, fields, error):
  with config.unlocked():
    config.update_from_flattened_dict({k: v for k, v in fields.items() if k != "prompts"})
    if "prompts" in fields:
      config.prompts = fields["prompts"]
  config.forget.ids = () if config.forget.label else config.forget.ids
  with pytest.raises(ValueError, match=error) as refused:
    build.build(config)
  assert "\n" not in str(refused.value)


SMALL = {"selective_amnesia": {"fisher_rows": 1, "fisher_chunk": 500}, "retrack": {"neighbours": 4}}


@pytest.mark.parametrize("name", methods.names())
def test_a_step_of_every_method_is_one_of_latents_and_prompts(config, name):
  """Traced, not compiled but for what it prepares: K gradients of the trained part."""
  takes = {"a": {"take": "forget", "to": "next"}}
  takes["alt"] = {"take": "class:a hand", "c": "forget", "to": "own"}
  takes["all"] = "all"
  read = {s: takes.get(s, "retain") for s in methods.make(name).streams}
  concept_of(config, name, read, "attn2").trained.rank = 2
  config.method.update(SMALL.get(name, {}))
  if name.startswith("embedding"):
    config.trained.update(pattern="prompts", rank=0)
  if "token" in methods.make(name).needs:
    config.trained.update(pattern="token", rank=0)
    with config.unlocked():
      config.prompts = {"token": "<it>"}
  setup = build.build(config)
  state, batch = topology.state_of(setup), topology.batch_of(setup)
  if type(setup.method).prepare is methods.Objective.prepare:
    assert len(cache.missing(setup.codec, setup.train)) == 12  # nothing was encoded for it
  assert next(iter(batch.values())).image.shape == (8, 8, 8, 4)
  program = step.program(setup, state.frozen)
  draws = jax.eval_shape(
    lambda state, batch: step.draw_rows(program, 0, state.step, batch, state.extras), state, batch
  )
  gradients = lambda state, draws: setup.method.gradients(
    program.predictor.bound(state.frozen), state.params, setup.process, draws, state.extras
  )
  grads, _ = jax.eval_shape(gradients, state, draws)
  for grad in grads:
    assert jax.tree.map(lambda g: g.shape, grad) == jax.tree.map(lambda p: p.shape, state.params)
  leaves = {path.split("/")[-1] for path in paths(state.params)}
  added = {"prompts": {"prompts", "empty"}, "token": {"token"}}
  assert leaves == added.get(config.trained.pattern, {"a", "b"})
