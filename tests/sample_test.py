"""`jaxunlearn sample`: what it draws of every kind of model, and what it refuses."""

import jax
import numpy as np
import pytest
from PIL import Image

from jaxunlearn.commands import sample
from jaxunlearn.commands.sample import Asked
from jaxunlearn.diffusion import Diffusion
from tests import export_test, tiny_pipeline

FASHION = "assets:pretrain_fashion"
NAMES = (("Bag", "Coat", "Shirt"), ("plain", "dotted"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pipeline")
  tiny_pipeline.write(folder)
  return str(folder)


def test_a_row_of_each_prompt_from_the_same_noise(pipeline, tmp_path):
  """Equal prompts differ by their noise alone; the last batch is filled up, and cut again."""
  asked = Asked(pipeline, ("the whale", "an emoji"), n=3, batch=2, steps=2)
  assert sample.write(asked, tmp_path / "made" / "grid.png") == (
    f"wrote 6 samples of {pipeline} by plms, 2 steps, to {tmp_path / 'made' / 'grid.png'}"
  )
  subject = sample.find(asked)
  images = sample.draw(subject, asked)
  assert images.shape == (6, 16, 16, 3) and np.isfinite(images).all()
  assert len({image.tobytes() for image in images}) == 6
  with Image.open(tmp_path / "made" / "grid.png") as picture:
    assert picture.size == (3 * 17 * 3 - 3, 2 * 17 * 3 - 3)
  alone = sample.draw(subject, Asked(pipeline, asked.prompts, n=3, batch=6, steps=2, scale=1.0))
  assert not np.allclose(alone, images)


def test_scale_is_guidance_and_one(pipeline):
  prompts = ("the whale",)
  subject = sample.find(Asked(pipeline, prompts))
  by = lambda **how: sample.draw(subject, Asked(pipeline, prompts, n=1, batch=1, steps=2, **how))
  np.testing.assert_array_equal(by(scale=7.5), by(guidance=6.5))
  np.testing.assert_array_equal(by(scale=7.5), by())
  with pytest.raises(ValueError, match=r"--scale and --guidance say the same thing, s = w \+ 1"):
    by(scale=7.5, guidance=6.5)


def test_a_conditional_model_by_number(tmp_path):
  asked = Asked(FASHION, labels=("1", "7"), n=2, batch=4, steps=2)
  subject = sample.find(asked)
  assert subject.c.tolist() == [1, 7] and subject.sampler == "ddpm"
  assert sample.draw(subject, asked).shape == (4, 28, 28, 1)
  assert sample.find(Asked(FASHION)).c.tolist() == list(range(10))


def test_a_run_by_its_average(tmp_path):
  export_test.make_run(tmp_path, ema=True)
  subject = sample.find(Asked(str(tmp_path)))
  x = np.random.default_rng(0).normal(size=(1, *subject.shape)).astype(np.float32)
  given = jax.numpy.asarray(x), jax.numpy.array([3])
  want = export_test.NET.apply(export_test.EMA, *given)
  np.testing.assert_allclose(subject.eps_fn(*given), want, atol=1e-6)
  assert subject.c is None and subject.process == Diffusion("scaled_linear", 900, 0.00085, 0.012)


def test_conditions_by_name():
  find = lambda **asked: sample._conditions((3, 2), NAMES, Asked("", **asked)).tolist()
  assert find(labels=("Coat", "0"), styles=("dotted",)) == [[1, 1], [0, 1]]
  assert find(labels=("Shirt",)) == [[2, 0], [2, 1]]
  assert sample._conditions((3,), NAMES[:1], Asked("", labels=("Bag",))).tolist() == [0]


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    (
      {"origin": FASHION, "prompts": ("x",)},
      "no text-to-image model and was given a prompt or a LoRA",
    ),
    ({"origin": FASHION, "labels": ("10",)}, "no class or style '10'; use one of: 0 to 9"),
    ({"origin": FASHION, "styles": ("1",)}, "the model knows no style and was given one"),
    (
      {"origin": "assets:pretrain_mnist", "labels": ("1",)},
      "the model knows no label and was",
    ),
    ({"origin": "sd.ckpt"}, r"--from is the file sd\.ckpt; give a folder.*jaxunlearn convert"),
    ({"origin": "nowhere"}, "init_from 'nowhere' is not a folder"),
    ({"origin": "", "n": 0}, "n is 0; use"),
    ({"origin": "", "steps": 0}, "steps is 0; use"),
  ],
)
def test_what_a_model_does_not_take_is_refused(fields, error):
  with pytest.raises(ValueError, match=error):
    sample.find(Asked(**fields))


def test_what_a_text_to_image_model_does_not_take_is_refused(pipeline, tmp_path):
  with pytest.raises(ValueError, match="--prompt is missing; say what to draw"):
    sample.find(Asked(pipeline))
  with pytest.raises(ValueError, match="was given a label or a style; use --prompt"):
    sample.find(Asked(pipeline, labels=("1",)))
  with pytest.raises(ValueError, match=r"--out is '.*grid\.jpg'; use a name that ends in \.png"):
    sample.write(Asked(pipeline, ("x",)), tmp_path / "grid.jpg")
