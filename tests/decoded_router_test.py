"""The router of predicted pictures: nearest centroids of features, decoded from latents."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxunlearn import data, home, latents
from jaxunlearn.cdm import compose, routers
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.cdm.routers import decoded
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.diffusion.held import Held
from jaxunlearn.latents import cache
from jaxunlearn.models import vae
from jaxunlearn.weights import clip_files

PROCESS = Diffusion()
SHAPE = (8, 8, 4)


@dataclasses.dataclass(frozen=True)
class Halves(vae.Autoencoder):
  """An autoencoder that needs no weights: the mean of each 2 x 2 pixels, and a fourth channel."""

  def encode(self, params, x):
    mean = x.reshape(len(x), 8, 2, 8, 2, 3).mean((2, 4))
    mean = jnp.pad(mean, ((0, 0), (0, 0), (0, 0), (0, 1)))
    return vae.Moments(mean, jnp.full(mean.shape, -30.0))

  def decode(self, params, z):
    return jnp.repeat(jnp.repeat(z[..., :3] / self.scaling_factor, 2, axis=1), 2, axis=2)


CODEC = latents.Codec(Halves(16, block_out_channels=(32, 32), scaling_factor=0.5), {})
ROUTER = decoded.Router(k=2, features="emoji_styles")
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@dataclasses.dataclass(frozen=True)
class Knows:
  """The eps that leads from any x_t to one picture."""

  def apply(self, params, x, t, c=None):
    gamma, sigma = (PROCESS.gamma(t), PROCESS.sigma(t))
    return (x - gamma * params["picture"]) / sigma


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(home.VARIABLE, str(tmp_path_factory.mktemp("cache")))
    rng = np.random.default_rng(0)
    made = {}
    for name, colour in COLOURS.items():
      pixels = np.clip(colour + rng.normal(0, 8, (3, 16, 16, 3)), 0, 255).astype(np.uint8)
      ids = np.array([f"{name}/{i}" for i in range(3)])
      made[name] = data.Records(ids, pixels, np.zeros(3, np.int32), ("all",))
    yield made


def fitted(records, codec=CODEC, router=ROUTER):
  return router.fit(records, Knows(), {}, PROCESS, codec)


def stack(parts):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts.values())


def weigh(records, picture, t, codec=CODEC, router=ROUTER):
  on = router.on(Knows(), {"picture": jnp.asarray(picture)}, codec)
  model = Compartments(tuple(records), (3, 3), {}, stack(fitted(records, codec, router)))
  x_t = jax.random.normal(jax.random.key(1), (1, *picture.shape))
  return np.exp(compose.log_weights(on, PROCESS, model)(x_t, jnp.array([t])))[0]


def test_a_predicted_picture_of_a_source_is_its_own_and_noise_is_everyones(records):
  for i, mine in enumerate(records.values()):
    picture = cache.look(CODEC, mine)(np.arange(1))[0]
    assert weigh(records, picture, 20)[i] > 0.8
    np.testing.assert_allclose(weigh(records, picture, 999), 0.5, atol=0.02)


def test_of_pixels_there_is_nothing_to_decode(records):
  picture = data.to_model(records["blue"].image[0])
  assert weigh(records, picture, 20, latents.PIXELS)[1] > 0.8


def test_a_part_is_of_its_source_alone(records):
  alone = fitted({"red": records["red"]})
  jax.tree.map(np.testing.assert_array_equal, alone["red"], fitted(records)["red"])
  assert alone["red"]["center"].shape == (2, 64) and alone["red"]["there"].all()
  assert ROUTER.seen(["red"])["centroids of red"] == "red alone"


def test_few_records_leave_centroids_out(records):
  few = {"red": records["red"].take(np.array([0]))}
  part = fitted(few)["red"]
  assert part["there"].tolist() == [True, False]


def test_every_makes_a_predictor_that_holds(records):
  router = dataclasses.replace(ROUTER, every=3)
  on = router.on(Knows(), {"picture": jnp.zeros(SHAPE)}, CODEC)
  model = Compartments(("red", "blue"), (3, 3), {"b": jnp.zeros(2)}, stack(fitted(records)))
  apply = jax.tree_util.Partial(lambda params, x, t, c=None: x * 0 + params["b"])
  held = compose.compose(apply, model, on, PROCESS, Mode("soft"))
  assert isinstance(held, Held) and held.every == 3
  assert not isinstance(compose.compose(apply, model, on, PROCESS, Mode("naive")), Held)


def test_a_clip_tower_from_a_folder_gives_features_as_transformers_does(tmp_path, records):
  torch.manual_seed(0)
  sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
  config = transformers.CLIPVisionConfig(
    **sizes, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=6
  )
  module = transformers.CLIPVisionModelWithProjection(config).eval()
  module.save_pretrained(tmp_path)
  images = data.to_model(records["red"].image)
  shown = (images / 2 + 0.5 - clip_files.MEAN) / clip_files.STD
  with torch.no_grad():
    want = module(torch.tensor(shown.transpose(0, 3, 1, 2))).image_embeds.numpy()
  got = decoded._extractor(str(tmp_path))(jnp.asarray(images))
  np.testing.assert_allclose(got, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: decoded._extractor("nowhere"), "config.router.features is 'nowhere'; use the folder"),
    (lambda: ROUTER.on(Knows(), None), "a router of predicted pictures has no backbone; set"),
    (lambda: decoded.Router(every=0), "every is 0; use a whole number, 1 or more"),
    (lambda: routers.make("decoded", feature="x"), "router decoded has no field 'feature'"),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    call()
