"""FID: resizing against PyTorch and Pillow, the cache of references, and what is missing."""

import dataclasses

import jax
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import load_file

from configs import common
from jaxunlearn import data, evals
from jaxunlearn.data import folder
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import fid, frechet
from jaxunlearn.models import inception
from jaxunlearn.weights import extractors
from tests import random_inception


def pictures(n, size=20, channels=3, seed=0):
  """uint8, each with a brightness and a contrast of its own."""
  rng = np.random.default_rng(seed)
  mean, sd = rng.uniform(40, 200, (n, 1, 1, channels)), rng.uniform(5, 60, (n, 1, 1, 1))
  return (mean + sd * rng.normal(size=(n, size, size, channels))).clip(0, 255).astype(np.uint8)


def records(pixels):
  ids = np.array([f"r{i}" for i in range(len(pixels))])
  return data.Records(ids, pixels, np.zeros(len(pixels), np.int32), ("one",))


def configured(**fields):
  options = common.get_config().eval
  options.update(fields)
  return options


def task(sample, reference, **options):
  return evals.Task(
    process=Diffusion(),
    target=data.to_model(sample[:0]),
    reference=records(reference),
    classes=("one",),
    samples=data.to_model(sample),
    identity=evals.identity(sampler="ddim", steps=2, n=len(sample), weights="ema", seed=0),
    options=configured(**options),
    rng=jax.random.key(0),
  )


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
  """Options that name the stand-in's weights."""
  random_inception.stand_in(monkeypatch, tmp_path)
  return {"inception_weights": str(random_inception.STAND_IN)}


def value(given):
  return fid.evaluate(lambda x, t, c=None: x, given)["fid"]


def test_fid_is_the_distance_of_inceptions_features(monkeypatch, tmp_path):
  """Of 100 of its features: C = B B^T, and the root's trace is the sum of B_1^T B_2's singulars."""
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path))
  network, path = inception.features, random_inception.weights()
  monkeypatch.setattr(inception, "FEATURES", 100)
  monkeypatch.setattr(inception, "features", lambda params, x: network(params, x)[:, :100])
  params = extractors.inception(load_file(path))

  def gaussian(pixels):
    x = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
    x = 2 * torch.nn.functional.interpolate(x, (299, 299), mode="bilinear") - 1
    features = np.asarray(inception.features(params, x.permute(0, 2, 3, 1).numpy()), np.float64)
    return features.mean(0), (features - features.mean(0)).T / np.sqrt(len(features) - 1)

  sample, reference = pictures(2), pictures(2, seed=1)
  (mu_1, b_1), (mu_2, b_2) = gaussian(sample), gaussian(reference)
  cross = np.linalg.svd(b_1.T @ b_2, compute_uv=False).sum()
  want = np.sum((mu_1 - mu_2) ** 2) + np.sum(b_1**2) + np.sum(b_2**2) - 2 * cross
  got = value(task(sample, reference, inception_weights=str(path), fid_batch=2))
  assert got[:2] == (pytest.approx(want, rel=1e-4), None)


@pytest.mark.parametrize("size", [8, 28, 299, 333, 512])
def test_bilinear_is_torchs(size):
  pixels = pictures(2, size)
  x = torch.tensor(pixels).permute(0, 3, 1, 2) / 255
  want = 2 * torch.nn.functional.interpolate(x, (299, 299), mode="bilinear") - 1
  got = np.asarray(fid.prepare(pixels, "bilinear"))
  np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).numpy(), atol=2e-5)


@pytest.mark.parametrize("size", [8, 28, 299, 333, 512])
def test_clean_is_pillows(size):
  """Bicubic, antialiased, each channel in float32, cut to what pixels can be."""
  pixels = pictures(2, size)

  def pillow(channel):
    image = PIL.Image.fromarray(channel.astype(np.float32))
    return np.asarray(image.resize((299, 299), PIL.Image.Resampling.BICUBIC)).clip(0, 255)

  want = [np.stack([pillow(picture[..., c]) for c in range(3)], axis=-1) for picture in pixels]
  got = np.asarray(fid.prepare(pixels, "clean"))
  np.testing.assert_allclose(got * 128 + 128, np.stack(want), atol=1e-2)


@pytest.mark.parametrize("size", [8, 28, 299, 333])
def test_torchmetrics_is_linear_from_the_upper_left(size):
  """Along each side, the value at i m / 299 of the line through m pixels."""
  pixels, place = pictures(2, size), np.arange(299) * size / 299
  line = lambda row: np.interp(place, np.arange(size), row)
  want = np.apply_along_axis(line, 2, np.apply_along_axis(line, 1, np.float64(pixels)))
  np.testing.assert_allclose(fid.prepare(pixels, "torchmetrics"), (want - 128) / 128, atol=1e-5)


def test_torchmetrics_cuts_pixels_as_torch_casts_to_bytes():
  x = np.random.default_rng(0).uniform(-1.2, 1.2, (4, 9, 9, 3)).astype(np.float32)
  want = ((torch.tensor(x) / 2 + 0.5).clamp(0, 1) * 255).byte().numpy()
  np.testing.assert_array_equal(fid.truncated(x), want)
  assert np.any(fid.truncated(x) != data.to_pixels(x))
  assert fid.cut_of("torchmetrics") is fid.truncated and fid.cut_of("clean") is data.to_pixels


@pytest.mark.parametrize("resize", fid.RESIZES)
def test_one_channel_is_repeated_and_four_are_refused(resize):
  grey = pictures(2, channels=1)
  want = fid.prepare(np.repeat(grey, 3, axis=-1), resize)
  np.testing.assert_allclose(fid.prepare(grey, resize), want, atol=1e-6)
  with pytest.raises(ValueError, match=r"images of 4 channels have no FID.*takes 1 or 3"):
    fid.prepare(pictures(2, channels=4), resize)


@pytest.mark.parametrize("resize", fid.RESIZES)
def test_fid_of_a_set_with_itself_is_0_in_any_order_and_batch(stand_in, resize):
  pixels, other = pictures(12), pictures(12, seed=1)
  middle = 0.4 / 127.5 if resize == "torchmetrics" else 0  # of a level, since pixels are cut

  def of(x, size):
    given = task(x, pixels, fid_resize=resize, fid_batch=size, **stand_in)
    return value(dataclasses.replace(given, samples=given.samples + np.float32(middle))).value

  assert of(other, 12) > 0.01
  assert of(pixels[::-1], 5) < 1e-6 * of(other, 12)
  assert of(other[::-1], 5) == pytest.approx(of(other, 12), rel=1e-5)


def test_samples_count_as_the_pixels_of_their_files(stand_in):
  """Less than half a level, or more than white, changes nothing."""
  given = task(pictures(9), pictures(9, seed=1), **stand_in)
  noise = np.random.default_rng(0).uniform(-0.49, 0.49, given.samples.shape) / 127.5
  moved = dataclasses.replace(given, samples=(given.samples + noise).astype(np.float32))
  assert value(moved) == value(given)
  white = dataclasses.replace(given, samples=np.full_like(given.samples, 1.0))
  whiter = dataclasses.replace(given, samples=np.full_like(given.samples, 1.7))
  assert value(white).value == value(whiter).value


def test_targets_are_left_out(stand_in):
  sample, reference = pictures(9), pictures(9, seed=1)
  given = task(sample, reference, target_radius=0.5, **stand_in)
  without = dataclasses.replace(given, target=given.samples[:4])
  assert value(without).value == value(task(sample[4:], reference, **stand_in)).value


def test_reference_is_computed_once_and_again_when_it_changes(stand_in, monkeypatch, tmp_path):
  seen = []
  stream = frechet.stream
  monkeypatch.setattr(frechet, "stream", lambda parts, d: seen.append(d) or stream(parts, d))

  def computed(given):
    """How many sets were looked at: the samples always, the reference perhaps."""
    seen.clear()
    return value(given), len(seen)

  sample, reference = pictures(9), pictures(9, seed=1)
  first, count = computed(task(sample, reference, **stand_in))
  assert count == 2
  assert computed(task(sample, reference, **stand_in)) == (first, 1)
  changed = reference.copy()
  changed[0, 0, 0, 0] ^= 1
  weights = random_inception.save("stand_in_2", {"none": np.ones(1)})
  for again in (
    task(sample, changed, **stand_in),
    task(sample, reference[:8], **stand_in),
    task(sample, reference, **stand_in, fid_resize="clean"),
    task(sample, reference, inception_weights=str(weights)),
  ):
    new, count = computed(again)
    assert count == 2
    assert new.identity != first.identity
    assert computed(again) == (new, 1)
  assert len(list((tmp_path / "fid").iterdir())) == 5


def test_how_files_became_pixels_is_in_the_key_and_the_identity(stand_in, monkeypatch, tmp_path):
  """The same files, resized by another filter: not the moments that were kept."""
  (tmp_path / "pictures").mkdir()
  for i, picture in enumerate(pictures(6, size=40)):
    PIL.Image.fromarray(picture).save(tmp_path / "pictures" / f"{i}.png")
  found = {}
  for fresh in (False, True):
    for how in ({"resize": "bicubic"}, {"resize": "box"}, {"resize": "box", "convert": True}):
      cache = "fresh" + "_".join(map(str, how.values())) if fresh else "one"
      monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / cache))
      source = folder.Source(path=str(tmp_path / "pictures"), size=20, **how)
      given = dataclasses.replace(
        task(pictures(6), pictures(6), **stand_in), reference=source.load()[0]
      )
      found[fresh, *how.items()] = value(given)
  shared = [v for (fresh, *_), v in found.items() if not fresh]
  alone = [v for (fresh, *_), v in found.items() if fresh]
  assert shared == alone
  assert shared[0].value != shared[1].value == shared[2].value
  assert len({v.identity for v in shared}) == 3


def test_identity_says_how(stand_in):
  given = task(pictures(5), pictures(6, seed=1), fid_resize="clean", **stand_in)
  facts = dict(fact.split("=") for fact in value(given).identity.split())
  assert facts["extractor"].startswith("stand_in:")
  assert len(facts["extractor"]) == len("stand_in:") + 12
  assert facts["resize"] == "clean"
  assert facts["pixels"] == "uint8"
  assert facts["n"] == "5"
  assert facts["reference"] == f"heldout:6:{given.reference.fingerprint()}"


def test_missing_weights_are_named_in_one_line_before_any_work(monkeypatch, tmp_path):
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path))
  with pytest.raises(ValueError, match=r"FID's Inception needs .*\.pth, .*fetch https") as e:
    evals.check("fid", configured())
  assert str(tmp_path / "pt_inception-2015-12-05-6726825d.pth") in str(e.value)
  assert "\n" not in str(e.value)


def test_wrong_options_are_named_before_any_work(stand_in):
  evals.check("fid", configured(**stand_in))
  with pytest.raises(ValueError, match=r"no FID resize 'cleen'.*did you mean 'clean'"):
    evals.check("fid", configured(fid_resize="cleen", **stand_in))
  with pytest.raises(ValueError, match="fid_batch is 0; use at least 1"):
    evals.check("fid", configured(fid_batch=0, **stand_in))


def test_weights_of_another_network_are_refused_before_any_work():
  path = random_inception.save("other", {"conv1.weight": np.zeros((1, 1))})
  with pytest.raises(ValueError, match=r"FID's Inception: 'Conv2d_1a_3x3.*is missing"):
    evals.check("fid", configured(inception_weights=str(path)))
