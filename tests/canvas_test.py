"""UnlearnCanvas's protocol: its classifier beside PyTorch's, the answer set, JPEG, and CRA."""

import io
import math
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from torch import nn

from jaxunlearn import data, evals, evaluation
from jaxunlearn.evals import canvas, classifiers, kept_accuracy
from tests import conditional_evals_test as ours
from tests import pets

# The classifier.

SIZE, PATCH, WIDTH, HEADS, DEPTH = 16, 4, 128, 2, 2


class Block(nn.Module):
  def __init__(self):
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
    self.attn, self.mlp = nn.Module(), nn.Module()
    self.attn.qkv, self.attn.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
    self.mlp.fc1, self.mlp.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

  def forward(self, x):
    b, n, _ = x.shape
    q, k, v = self.attn.qkv(self.norm1(x)).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    x = x + self.attn.proj(y.transpose(1, 2).reshape(b, n, WIDTH))
    return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


class Vit(nn.Module):
  """timm's VisionTransformer with a class token, by its definition and its names."""

  def __init__(self, classes):
    super().__init__()
    places = (SIZE // PATCH) ** 2 + 1
    self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
    self.pos_embed = nn.Parameter(torch.randn(1, places, WIDTH))
    self.patch_embed = nn.Module()
    self.patch_embed.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
    self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
    self.norm, self.head = nn.LayerNorm(WIDTH, 1e-6), nn.Linear(WIDTH, classes)

  def forward(self, images):
    x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
    return self.head(self.norm(self.blocks(x))[:, 0])


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
  """(a file of random weights of 20 objects, the module)."""
  torch.manual_seed(0)
  module = Vit(20).eval()
  path = tmp_path_factory.mktemp("vit") / "objects.safetensors"
  safetensors.numpy.save_file({k: v.numpy() for k, v in module.state_dict().items()}, path)
  return path, module


def test_the_classifier_is_timms(vit):
  path, module = vit
  images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
  x = data.to_model(images)
  found = classifiers.load(str(path))
  assert found.net.size == SIZE and found.recipe.classes == canvas.OBJECTS
  with torch.no_grad():
    logits = module(torch.tensor(np.moveaxis(x, -1, 1).copy()))
  want = torch.softmax(logits.double(), 1).numpy()
  np.testing.assert_allclose(found.probabilities(x), want, atol=1e-5)
  names = [canvas.OBJECTS[i] for i in want.argmax(axis=1)]
  assert found.agrees(x, names).all() and not found.agrees(x[:1], [other(names[0])]).any()
  with pytest.raises(ValueError, match=r"no class of the classifier objects 'Dog'.*mean 'Dogs'"):
    found.agrees(x[:1], ["Dog"])


def other(name):
  return next(one for one in canvas.OBJECTS if one != name)


def test_pictures_are_resized_as_pillow_does():
  images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
  got = canvas.resized(data.to_model(images), 8)
  one = Image.fromarray(images[1]).resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(got[1], data.to_model(np.asarray(one)))


@pytest.mark.parametrize("change", ["missing", "left over", "classes", "none"])
def test_a_file_of_something_else_is_refused(vit, tmp_path, change):
  state = safetensors.numpy.load_file(vit[0])
  if change == "missing":
    del state["blocks.1.attn.qkv.bias"]
  if change == "left over":
    state["fc_norm.weight"] = np.ones(3, np.float32)
  if change == "classes":
    state |= {"head.bias": np.zeros(7, np.float32), "head.weight": np.zeros((7, WIDTH), "f4")}
  if change == "none":
    state = {"weight": np.zeros(3, np.float32)}
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(state, path)
  wrong = "missing, left over|tells 7 classes apart; the benchmark's have 51|holds no ViT of timm's"
  with pytest.raises(ValueError, match=rf"x\.safetensors.*({wrong})"):
    classifiers.load(str(path))


def test_a_file_that_is_not_there_is_named():
  with pytest.raises(ValueError, match=r"no classifier in no/where\.safetensors; name a file"):
    classifiers.load("no/where.safetensors")


# The answer set.


def setup(seeds=()):
  return types.SimpleNamespace(
    config=types.SimpleNamespace(eval=types.SimpleNamespace(seed=0, seeds=seeds)),
    net=types.SimpleNamespace(classes=(2, 3), image_shape=(2, 2, 1)),
  )


def test_the_answers_are_in_the_order_of_the_benchmarks_loop():
  want = [(thing, style) for _ in (7, 8) for style in range(3) for thing in range(2)]
  np.testing.assert_array_equal(evaluation.answers((2, 3), (7, 8)), want)
  assert evaluation.answers((3,), (7,)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [4, 5])
def test_the_noise_of_an_answer_is_of_its_seed_and_its_place(size):
  count = 2 * math.prod((2, 3))
  parts = [evaluation.noise(setup((7, 8)), i, size, (7, 8)) for i in range(math.ceil(count / size))]
  got = np.concatenate(parts)[:count]
  one = lambda seed, place: jax.random.normal(
    jax.random.fold_in(jax.random.key(seed), place), (2, 2, 1)
  )
  want = [one(seed, place) for seed in (7, 8) for place in range(6)]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_jpeg_is_pillows():
  images = np.random.default_rng(2).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
  assert evaluation.saved(images, 0) is images
  file = io.BytesIO()
  Image.fromarray(data.to_pixels(images)[1]).save(file, "JPEG")  # whose default is 75
  want = data.to_model(np.asarray(Image.open(file)))
  np.testing.assert_array_equal(evaluation.saved(images, 75)[1], want)


@pytest.mark.parametrize(("over", "want"), [("kept", 0.5), ("all", 0.75)])
def test_cra_may_be_over_all_samples_as_in_the_benchmark(monkeypatch, over, want):
  """Two samples of the style that goes, both right in their class; two kept, one of them right."""
  pets.stand_in(monkeypatch)
  samples = pets.pictures_of(["cat", "dog", "cat", "fox"], ["ink", "ink", "photo", "photo"])
  c = [[0, 1], [1, 1], [0, 0], [1, 0]]
  task = ours.make_task(samples, c, ours.INK, styled=True)
  task.options.cra = over
  found = evals.metric("kept_accuracy")(lambda *_: None, task)["cra"]
  assert found.value == want and ("over=all" in found.identity) == (over == "all")


def test_a_wrong_set_for_cra_is_refused(monkeypatch):
  pets.stand_in(monkeypatch)
  options = evals.Options(classifier="species", cra="every")
  with pytest.raises(ValueError, match="no set of samples for cra 'every'; there are: kept, all"):
    kept_accuracy.check(options)
