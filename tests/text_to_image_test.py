"""A text-to-image model as any other: unlearned, evaluated, resumed, attacked, from its folder."""

import json

import diffusers
import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from jaxunlearn import build, export, methods, step, train
from jaxunlearn.commands import sample
from jaxunlearn.commands.sample import Asked
from jaxunlearn.compiled import topology
from jaxunlearn.latents import cache
from jaxunlearn.weights import of_run, pretrained
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
  assert {path.split("/")[0] for path in paths(frozen)} == {"text_encoder"}


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
  by = lambda origin: sample.draw(
    sample.find(asked := Asked(str(origin), ("a hand",), n=1, batch=1, steps=2)), asked
  )
  np.testing.assert_allclose(by(tmp_path / "run"), by(tmp_path / "out"), atol=1e-5)


TRACED = [
  name
  for name in methods.names()
  if type(methods.make(name)).prepare is methods.Objective.prepare and "embedding" not in name
]


@pytest.mark.parametrize("name", TRACED)
def test_a_step_of_every_method_is_one_of_latents_and_prompts(config, name):
  """Traced, not compiled: K gradients of the trained part, whatever the method."""
  config.forget.update(ids=(), label="a red whale")
  config.method = common.method(name)
  takes = {
    "a": {"take": "forget", "to": "next"},
    "alt": {"take": "class:a hand", "c": "forget", "to": "own"},
  }
  config.streams = {s: takes.get(s, "retain") for s in methods.make(name).streams}
  config.trained.update(pattern="attn2", rank=2)
  setup = build.build(config)
  state, batch = topology.state_of(setup), topology.batch_of(setup)
  assert len(cache.missing(setup.codec, setup.train)) == 12  # nothing was encoded for it
  assert {rows.image.shape for rows in batch.values()} == {(8, 8, 8, 4)}
  program = step.program(setup)
  draws = jax.eval_shape(
    lambda state, batch: step.draw_rows(program, 0, state.step, batch, state.extras), state, batch
  )
  gradients = lambda state, draws: setup.method.gradients(
    program.predictor.bound(state.frozen), state.params, setup.process, draws, state.extras
  )
  grads, _ = jax.eval_shape(gradients, state, draws)
  for grad in grads:
    assert jax.tree.map(lambda g: g.shape, grad) == jax.tree.map(lambda p: p.shape, state.params)
  assert {path.split("/")[-1] for path in paths(state.params)} == {"a", "b"}
