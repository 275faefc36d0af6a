"""The copy protocols with SSCD: closed forms, what is noised when, and what is missing."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from configs import common
from jaxunlearn import data, evals
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.evals import restoration, sscd
from jaxunlearn.models import resnet
from jaxunlearn.weights import extractors
from tests import random_resnet, torchvision_ops, toys

PROCESS = Diffusion()


def options(**changes):
  out = common.get_config().eval
  out.update({"sscd_weights": str(random_resnet.weights()), "inject_t": 20, "inject_n": 3})
  out.update(changes)
  return out


def pictures(channels=3):
  """Two unrelated pictures of 40 x 32 pixels, of squares 4 pixels wide."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 10, 8, channels)).repeat(4, axis=1).repeat(4, axis=2)
  return data.to_model(pixels.astype(np.uint8))


def task(target, **changes):
  return evals.Task(
    process=PROCESS,
    target=target,
    reference=data.load("mnist_tshirt")[1],
    classes=(),
    samples=target,
    identity=evals.identity(sampler="ddpm", guidance="none", weights="raw", seed=0),
    options=options(**changes),
    rng=jax.random.key(0),
  )


def evaluate(restored, target, **changes):
  """The value of a model that knows the picture `restored` alone, and ends there."""
  eps_fn = toys.mixture_eps_fn(PROCESS, restored[None], 0.0, np.ones(1))
  return sscd.evaluate(eps_fn, task(target[None], **changes))["sscd"]


@pytest.mark.parametrize("protocol", ["siss", "retrack"])
def test_a_model_of_the_target_scores_1_and_of_another_picture_less(protocol):
  target, other = pictures()
  same = evaluate(target, target, sscd_protocol=protocol)
  assert same.value == pytest.approx(1, abs=1e-5)
  assert evaluate(other, target, sscd_protocol=protocol).value < 0.9999
  noise = np.random.default_rng(1).uniform(-1, 1, target.shape).astype(np.float32)
  assert evaluate(noise, target, sscd_protocol=protocol).value < 0.9999


def test_identity_names_the_protocol_and_the_file():
  target, _ = pictures()
  siss, retrack = (evaluate(target, target, sscd_protocol=p) for p in ("siss", "retrack"))
  digest = hashlib.sha256(random_resnet.weights().read_bytes()).hexdigest()[:12]
  shared = {"extractor": f"random:{digest}", "normalisation": "imagenet", "inject_t": "20"}
  shared |= {"sampler": "ddpm", "steps": "21", "guidance": "none", "weights": "raw", "seed": "0"}
  theirs = {
    siss: {"protocol": "siss", "inject_n": "3", "resize": "none"},
    retrack: {"protocol": "retrack", "inject_n": "1", "resize": "288-bilinear-8bit"},
  }
  for value, facts in theirs.items():
    found = dict(fact.split("=") for fact in value.identity.split())
    assert found.pop("target").startswith("tshirt:1:")
    assert found == shared | facts
  assert siss.ci95 and retrack.ci95 is None


def test_similarity_is_the_cosine_of_each_with_its_own_target():
  a, b = pictures()
  params = extractors.sscd(random_resnet.state_dict())
  got = sscd.similarity(params, None, jnp.array([[a, b, a], [a, b, a]]), jnp.array([a, b]))
  d = resnet.describe(params, sscd.prepare(np.stack([a, b])))
  np.testing.assert_allclose(got, [[1, d[0] @ d[1], 1], [d[0] @ d[1], 1, d[0] @ d[1]]], atol=1e-5)


def test_a_target_is_noised_once_and_restored_in_different_ways():
  seen = {}

  def eps_fn(x_t, t, c=None):
    jax.debug.callback(lambda x, t: seen.update({int(t[0]): np.asarray(x)}), x_t, t)
    return jnp.zeros_like(x_t)

  target = pictures()[:1]
  similarity = lambda restored, target: jnp.mean(restored * target[:, None], (2, 3, 4))
  value = restoration.score(jax.tree_util.Partial(eps_fn), task(target), "sscd", similarity, 3)
  jax.effects_barrier()
  assert set(seen) == set(range(21))
  np.testing.assert_array_equal(seen[20], np.repeat(seen[20][:1], 3, axis=0))
  noise = seen[20][0] - np.sqrt(PROCESS.abar[20]) * target[0]
  assert noise.std() == pytest.approx(np.sqrt(1 - PROCESS.abar[20]), rel=0.05)
  assert np.abs(seen[19][0] - seen[19][1]).max() > 0.01
  assert set(value) == {"sscd"}


def test_pixels_are_normalised_as_imagenets_and_one_channel_is_repeated():
  x = pictures(channels=1)
  pixels = np.repeat((x + 1) / 2, 3, axis=-1)
  want = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(sscd.prepare(x), want, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(sscd.prepare(np.repeat(x, 3, axis=-1)), sscd.prepare(x))
  with pytest.raises(ValueError, match=r"4 channels.*1 or 3"):
    sscd.prepare(np.zeros((1, 32, 32, 4), np.float32))


@pytest.mark.parametrize("transposed", [False, True])
def test_retracks_preparation_is_torchvisions(transposed):
  """Levels between two are cut to the lower one; whole levels stay."""
  transforms = torchvision_ops.load().transforms
  x = pictures()[0].swapaxes(0, 1) if transposed else pictures()[0]
  steps = [transforms.Resize(288), transforms.ToTensor(), transforms.Normalize(sscd.MEAN, sscd.STD)]
  pixels = np.round((x + 1) * 127.5).astype(np.uint8)
  want = transforms.Compose(steps)(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
  assert min(want.shape[:2]) == 288
  np.testing.assert_allclose(sscd.prepare(x[None], 288)[0], want, atol=1e-6)
  between = np.minimum(x + 0.9 / 127.5, 1)
  np.testing.assert_array_equal(sscd.prepare(between[None], 288), sscd.prepare(x[None], 288))


def test_what_is_missing_is_said_in_one_line_before_any_work(tmp_path, monkeypatch):
  evals.check("sscd", options())
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path))
  with pytest.raises(ValueError, match=r"SSCD.*torchvision\.pt.*not there.*sscd_weights") as error:
    evals.check("sscd", common.get_config().eval)
  assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
  with pytest.raises(ValueError, match=r"no SSCD protocol 'sis' .did you mean 'siss'"):
    evals.check("sscd", options(sscd_protocol="sis"))
  (tmp_path / "other.safetensors").write_bytes(safetensors.numpy.save({"a": np.zeros(1)}))
  with pytest.raises(ValueError, match="not the weights of SSCD"):
    evals.check("sscd", options(sscd_weights=str(tmp_path / "other.safetensors")))
