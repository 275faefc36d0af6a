"""Latents: the loss of an autoencoder, its training run, and decoding in parts."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_little_vae
from jaxunlearn import data, home, latents, pipeline, train
from jaxunlearn.data import emoji
from jaxunlearn.evaluation import Stopped
from jaxunlearn.latents import cache
from jaxunlearn.latents import loss as of_loss
from jaxunlearn.latents import train as autoencoding
from jaxunlearn.mesh import processes
from jaxunlearn.models import vae

NET = vae.Autoencoder(
  sample_size=16, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4
)


@pytest.fixture(scope="module")
def params():
  return NET.init(jax.random.key(0))


def test_the_loss_in_float64(params):
  x = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
  key = jax.random.key(1)
  total, terms = of_loss.Loss(l1=2.0, l2=0.5, kl=0.1)(NET, params, jnp.asarray(x), key)
  mean, log_var = (np.asarray(part, np.float64) for part in NET.encode(params, jnp.asarray(x)))
  noise = np.asarray(jax.random.normal(key, mean.shape), np.float64)
  z = mean + np.exp(log_var / 2) * noise
  error = np.asarray(NET.decode(params, jnp.float32(NET.scaling_factor * z)), np.float64) - x
  want = {
    "l1": np.abs(error).sum() / 3,
    "l2": (error**2).sum() / 3,
    "kl": 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum() / 3,
  }
  for name, value in want.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-4)
  np.testing.assert_allclose(total, 2 * want["l1"] + 0.5 * want["l2"] + 0.1 * want["kl"], rtol=1e-4)


def test_crops_are_squares_of_their_images():
  images = np.random.default_rng(0).normal(size=(5, 9, 12, 3)).astype(np.float32)
  found = autoencoding.crops(images, 4, np.random.default_rng(1))
  assert found.shape == (5, 4, 4, 3)
  for image, crop in zip(images, found, strict=True):
    windows = np.lib.stride_tricks.sliding_window_view(image, (4, 4, 3))
    assert (windows == crop).all(axis=(-3, -2, -1)).any()


def test_psnr_of_a_known_error():
  x = np.zeros((2, 4, 4, 3), np.float32)
  np.testing.assert_allclose(autoencoding.psnr(x, x + 0.2), 20)
  overshoot = autoencoding.psnr(x + 1, x + 1.5)  # is cut off
  np.testing.assert_allclose(overshoot, 10 * np.log10(4e10))


def test_decoding_in_parts_is_decoding(params):
  z = np.random.default_rng(0).normal(size=(5, 8, 8, 4)).astype(np.float32)
  codec = latents.Codec(NET, params, batch=2)
  whole = NET.decode(params, jnp.asarray(z))
  np.testing.assert_allclose(codec.decode(z), whole, atol=1e-5)


def records(n=5):
  image = np.random.default_rng(1).integers(0, 256, (n, 16, 16, 3), np.uint8)
  ids = np.array([f"{i}.png" for i in range(n)])
  return data.Records(ids, image, np.zeros(n, np.int32), ("all",))


@pytest.fixture
def codec(params, tmp_path, monkeypatch):
  monkeypatch.setenv(home.VARIABLE, str(tmp_path))
  return latents.Codec(NET, params, batch=2)


def test_moments_are_kept_and_latents_drawn_anew_from_them(codec, params):
  pictures = records()
  moments = cache.fill(codec, pictures)
  x = jnp.asarray(data.to_model(pictures.image))
  mean, log_var = map(np.asarray, NET.encode(params, x))
  np.testing.assert_allclose(codec.encode(np.asarray(x)), NET.scaling_factor * mean, atol=1e-5)
  index = np.array([3, 0])
  draws = [moments.draw(index, np.random.default_rng(seed)) for seed in range(4000)]
  spread = NET.scaling_factor * np.exp(log_var[index] / 2)
  np.testing.assert_allclose(np.mean(draws, 0), NET.scaling_factor * mean[index], atol=0.03)
  np.testing.assert_allclose(np.std(draws, 0), spread, rtol=0.06)
  np.testing.assert_array_equal(draws[7], moments.draw(index, np.random.default_rng(7)))


def test_what_is_there_is_not_encoded_again(codec, monkeypatch, tmp_path):
  pictures, asked = records(), []
  real = latents.Codec.moments
  monkeypatch.setattr(
    latents.Codec, "moments", lambda self, x: asked.append(len(x)) or real(self, x)
  )
  first = cache.fill(codec, pictures.take(np.arange(3)))
  assert asked == [2, 2] and cache.missing(codec, pictures).tolist() == [3, 4]
  whole = cache.fill(codec, pictures)
  assert asked == [2, 2, 2] and not len(cache.missing(codec, pictures))
  np.testing.assert_array_equal(first.paths, whole.take(np.arange(3)).paths)
  assert not list(tmp_path.rglob(f"*.{os.getpid()}"))


def test_another_autoencoder_has_files_of_its_own(codec, params):
  cache.fill(codec, records())
  other = jax.tree.map(lambda leaf: leaf * 1.001, params)
  scaled = dataclasses.replace(NET, scaling_factor=0.5)
  for one in (latents.Codec(NET, other), latents.Codec(scaled, params)):
    assert one.identity != codec.identity and len(cache.missing(one, records())) == 5


def test_a_damaged_file_is_named(codec):
  moments = cache.fill(codec, records(1))
  pathlib.Path(moments.paths[0]).write_bytes(b"no array")
  with pytest.raises(
    ValueError, match=r"the latents in .*\.npy cannot be read .*; delete that file"
  ):
    moments.draw(np.array([0]), np.random.default_rng(0))


def test_moments_of_another_autoencoder_are_named(codec):
  """In the place of this one's: the file's name says which it should be."""
  moments = cache.fill(codec, records(2))
  np.save(moments.paths[1], np.zeros((4, 4, 8), np.float16))
  with pytest.raises(
    ValueError, match=r"they are \(4, 4, 8\) and this autoencoder's are \(8, 8, 8\)"
  ):
    moments.draw(np.array([0, 1]), np.random.default_rng(0))


@pytest.mark.parametrize("size", [(1, 16), (16, 15), (0, 2)])
def test_a_picture_that_does_not_divide_into_latents_is_refused(codec, size):
  with pytest.raises(ValueError, match=r"^images are \d+ x \d+ and a latent stands for 2 pixels"):
    codec.moments(np.zeros((1, *size, 3), np.float32))


@pytest.fixture
def config(monkeypatch):
  """The little autoencoder's, in miniature, on forty emoji."""
  whole = emoji.Source(size=16).load()
  monkeypatch.setattr(data, "load", lambda **_: tuple(part.take(np.arange(40)) for part in whole))
  config = pretrain_little_vae.get_config()
  config.autoencoder.update(sample_size=16, block_out_channels=(8, 8), norm_num_groups=4)
  config.loss.update(crop=8, crop_share=0.5)
  config.train.update(steps=4, batch=8, checkpoint_every=1, log_every=1)
  return config


def test_a_run_that_was_stopped_ends_as_one_that_was_not(config, tmp_path, monkeypatch):
  config.loss.crop = 0  # one program less
  whole = pipeline.run_single(config, tmp_path / "whole")
  assert (tmp_path / "whole" / "reconstructions.png").stat().st_size > 1000
  assert json.loads((tmp_path / "whole" / "results.json").read_text()) == whole
  assert whole["heldout"] == 40 and 5 < whole["psnr_heldout"] < 30

  class Stops:
    """A signal that arrives after two steps."""

    def __enter__(self):
      left = iter([False, True])
      return lambda: next(left)

    def __exit__(self, *_):
      pass

  with monkeypatch.context() as patch:
    patch.setattr(processes, "stop_signal", Stops)
    with pytest.raises(Stopped):
      pipeline.run_single(config, tmp_path / "parts")
  assert pipeline.run_single(config, tmp_path / "parts") == whole


def test_a_run_that_diverges_says_so(config, tmp_path):
  config.optimizer.update(learning_rate=1e12, warmup=0)
  with pytest.raises(train.Diverged, match=r"loss is (nan|inf) at step \d; lower config.optim"):
    pipeline.run_single(config, tmp_path)


@pytest.mark.parametrize(
  ("group", "fields", "error"),
  [
    (
      "autoencoder",
      {"sample_size": 32},
      r"images are \(16, 16, 3\) and config.autoencoder takes 32",
    ),
    ("loss", {"crop": 7}, "config.loss.crop is 7; use a multiple of 2 up to 16, or 0"),
    ("loss", {"kl": -1.0}, "config.loss.kl is -1; use"),
    ("train", {"batch": 0}, "config.train.batch is 0; use"),
  ],
)
def test_a_config_that_fits_nothing_is_refused(config, tmp_path, group, fields, error):
  config[group].update(fields)
  with pytest.raises(ValueError, match=error):
    pipeline.run_single(config, tmp_path)
