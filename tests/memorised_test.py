"""What a model has memorised: scores in closed form, splits, the command, and what it refuses."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from jaxunlearn import data
from jaxunlearn.commands import memorised
from jaxunlearn.diffusion import Diffusion, guidance, sampling
from jaxunlearn.evals import one_step, text_noise
from jaxunlearn.memorisation import clusters, drawing, prompt_list, split, variants
from jaxunlearn.weights import stable_diffusion
from tests import random_resnet, tiny_pipeline

PROCESS = Diffusion("scaled_linear", beta_1=0.00085, beta_T=0.012)
OPTIONS = sampling.Options(steps_offset=1, set_alpha_to_one=False, clip_sample=False)
SHAPE = (4, 4, 2)
PUSH = jnp.array([3.0, 1.0, 0.0])  # of the prompts 0 and 1, and of NULL, which is the last


def pushed(x_t, t, c):
  """A predictor whose prompts move every value of the noise by a number."""
  del t
  return 0.1 * x_t + PUSH[c].reshape(-1, 1, 1, 1)


def noise(n=3, seed=0):
  return jnp.float32(np.random.default_rng(seed).standard_normal((n, *SHAPE)))


# Scores


def test_the_text_noise_of_a_push_is_its_norm_at_every_step():
  eps_fn = guidance.guided(jax.tree_util.Partial(pushed), 6.5)
  for row, push in enumerate((3, 1)):
    _, m = text_noise.magnitudes(eps_fn, PROCESS, noise(), np.full(3, row), 10, OPTIONS)
    np.testing.assert_allclose(m, push * np.sqrt(np.prod(SHAPE)), rtol=1e-5)
    assert m.shape == (3, 10)


def test_the_one_step_score_of_a_push_is_in_closed_form():
  """eps_s = .1 x_T + s push, with x_T = sigma n / sqrt(1 + sigma^2)."""
  eps_fn = guidance.guided(jax.tree_util.Partial(pushed), 6.5)
  sigma = np.sqrt(1 / PROCESS.abar[-1] - 1)
  assert sigma == pytest.approx(14.6146, abs=1e-3)  # k-diffusion's largest, of Stable Diffusion
  z0 = sigma * np.float64(noise())
  z1 = z0 - sigma * (0.1 * z0 / np.sqrt(1 + sigma**2) + 7.5 * 3)
  got = one_step.score(eps_fn, PROCESS, noise(), np.zeros(3, np.int32))
  np.testing.assert_allclose(got, ((z0 - z1) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pipeline")
  tiny_pipeline.write(folder)
  return folder


def test_the_scores_are_those_of_diffusers_networks(model):
  """Written from the papers' definitions, with PyTorch's UNet and diffusers' DDIM."""
  ours = stable_diffusion.load(model)
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(model)
  scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
  scheduler.set_timesteps(5)
  words = pipe.tokenizer(["the whale", ""], padding="max_length", return_tensors="pt").input_ids
  given = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
  x_T = jnp.asarray(given)
  eps_fn = guidance.guided(ours.eps_fn(["the whale"]), 6.5)
  c = np.zeros(2, np.int32)
  with torch.no_grad():
    states = pipe.text_encoder(words)[0].repeat_interleave(2, 0)
    predict = lambda z, t: pipe.unet(torch.cat([z, z]), t, states).sample.chunk(2)
    z, want = torch.from_numpy(given.transpose(0, 3, 1, 2)), []
    for t in scheduler.timesteps:
      eps_c, eps_null = predict(z, t)
      want.append((eps_c - eps_null).flatten(1).norm(dim=1).numpy())
      z = scheduler.step(eps_null + 7.5 * (eps_c - eps_null), t, z).prev_sample
    sigma = float(np.sqrt(1 / PROCESS.abar[-1] - 1))
    z0 = sigma * torch.from_numpy(given.transpose(0, 3, 1, 2))
    eps_c, eps_null = predict(z0 / np.sqrt(1 + sigma**2), torch.tensor(999))
    z1 = z0 - sigma * (eps_null + 7.5 * (eps_c - eps_null))
  made, m = text_noise.magnitudes(eps_fn, ours.process, x_T, c, 5, ours.sampler)
  np.testing.assert_allclose(m, np.stack(want, axis=1), rtol=1e-3)
  np.testing.assert_allclose(made, z.permute(0, 2, 3, 1).numpy(), rtol=1e-2, atol=1e-3)
  score = one_step.score(eps_fn, ours.process, x_T, c)
  np.testing.assert_allclose(score, ((z0 - z1) ** 2).mean(dim=(1, 2, 3)).numpy(), rtol=1e-3)


# Splits


def pictures(hits=6, others=10, size=8):
  """Copies of one picture with some noise at the places hits, and unlike ones."""
  rng = np.random.default_rng(0)
  one = rng.integers(0, 256, (size, size, 3))
  copies = np.clip(one + rng.normal(0, 4, (hits, size, size, 3)), 0, 255)
  images = np.concatenate([rng.integers(0, 256, (others, size, size, 3)), copies])
  return images.astype(np.uint8), np.arange(hits + others) >= others


def test_two_clusters_find_the_copies_and_know_others():
  images, hits = pictures()
  like = split.densest(images)
  assert hits[like]
  found = clusters.fit(images, like)
  np.testing.assert_array_equal(found.are_memorised(images.astype(np.float32)), hits)
  np.testing.assert_allclose(found.centres[1], images[hits].mean(0), rtol=1e-6)
  parts = split.of(images, hits, like)
  assert parts.share == 6 / 16 and parts.doubts == [] and parts.tight < 0.1
  (doubt,) = dataclasses.replace(parts, away=2.5).doubts
  assert doubt == "no picture is the reference: the nearest is 2.5 times the radius away"
  with pytest.raises(ValueError, match=r"^pictures are \(9, 9, 3\) and the clusters are of \(8, 8"):
    found.are_memorised(np.zeros((1, 9, 9, 3)))


def test_k_means_is_that_of_the_pixels():
  """The same labels as Lloyd's rule on 255 x in HWC leaves unchanged."""
  images, _ = pictures(20, 20)
  found = clusters.fit(images, 25)
  flat = images.reshape(len(images), -1).astype(np.float64)
  centres = found.centres.reshape(2, -1)
  label = np.argmin(((flat[:, None] - centres) ** 2).sum(-1), axis=1)
  np.testing.assert_allclose([flat[label == k].mean(0) for k in (0, 1)], centres, rtol=1e-5)


@pytest.mark.parametrize(
  ("hits", "others", "doubt"),
  [
    (0, 12, "under 2"),
    (1, 30, "the share memorised is 3%, near 0"),
    (30, 1, "the share memorised is 97%, near 1"),
  ],
)
def test_doubts_are_told(hits, others, doubt):
  images, _ = pictures(hits, others)
  found = clusters.fit(images, split.densest(images))
  mask = found.are_memorised(images.astype(np.float32))
  if hits == 1:
    mask = np.arange(31) == 30
  assert any(doubt in one for one in split.of(images, mask).doubts)


def test_a_split_in_nothing_and_everything():
  images, _ = pictures(3, 3)
  for mask in (np.zeros(6, bool), np.ones(6, bool)):
    assert len(split.of(images, mask).doubts) == 1


def test_the_radius_is_websters_at_256_pixels():
  assert split.verbatim_radius((256, 256, 3)) ** 2 == pytest.approx(2500)
  a = np.zeros((1, 2, 2, 3), np.uint8)
  assert split.distances(a, a + 255)[0, 0] == pytest.approx(np.sqrt(12))
  with pytest.raises(ValueError, match=r"^a reference is \(3, 3, 3\) and the pictures are \(2, 2"):
    split.distances(a, np.zeros((1, 3, 3, 3), np.uint8))


def test_files_of_clusters_and_labels(tmp_path):
  images, hits = pictures()
  found = clusters.fit(images, 12)
  clusters.write(tmp_path / "kmeans.npz", found)
  assert clusters.read(tmp_path / "kmeans.npz").identity == found.identity
  names = [drawing.name_of(i) for i in range(16)]
  clusters.write_labels(tmp_path, names, hits, 12)
  np.testing.assert_array_equal(clusters.read_labels(tmp_path / clusters.LABELS, names), hits)
  info = json.loads((tmp_path / clusters.INFO).read_text())
  assert info == {"frac_deletion": 6 / 16, "mem_idx": 12}
  (tmp_path / "labels.json").write_text(json.dumps({f"images/{n}": 1 for n in names[:-1]}))
  with pytest.raises(ValueError, match=r"has no 0 or 1 for 015.png \(1 pictures\); add it"):
    clusters.read_labels(tmp_path / "labels.json", names)
  with pytest.raises(ValueError, match=r"^the clusters .* are not there; python -m jaxunlearn"):
    clusters.read(tmp_path / "other.npz")
  np.savez(tmp_path / "bad.npz", centres=np.zeros((3, 4)), memorised=0)
  with pytest.raises(
    ValueError, match=r"holds centres \(3, 4\) and memorised 0; give centres \[2, H"
  ):
    clusters.read(tmp_path / "bad.npz")
  (tmp_path / "text.npz").write_text("no")
  with pytest.raises(ValueError, match="holds no clusters"):
    clusters.read(tmp_path / "text.npz")


# Prompts


def test_variants_by_rule():
  found = dict(variants.variants("a big whale"))
  assert found["punctuated: '' at the end"] == "a big whale ''"
  assert found["repeated: big"] == "a big big whale"
  assert found["dropped: big"] == "a whale"
  assert found["repeated: all of it"] == "a big whale a big whale"
  assert len(set(found.values())) == len(found) == 11
  assert "a big whale" not in found.values()
  assert len(variants.variants("a big whale", 4)) == 4
  assert [v.prompt for v in variants.variants("whale")] == [
    "whale ''",
    "whale!!!",
    '"whale"',
    "whale whale",
  ]


def test_a_list_of_prompts(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text("a  Whale!\na hand\ta hand ''\n\U0001f40b\n")
  one, two, three = prompt_list.read(path)
  assert (one.prompt, one.name, two.modified) == ("a Whale!", "a-whale", "a hand ''")
  assert len(three.name) == 6
  assert len(prompt_list.Entry("w" * 90).name) == 55
  path.write_text("a whale\nan emoji\na  whale\n")
  with pytest.raises(ValueError, match="prompts 1 and 3 are the same, 'a whale'; keep one of them"):
    prompt_list.read(path)
  path.write_text("a\tb\tc\n")
  with pytest.raises(ValueError, match="prompt 1: 3 columns; give a prompt"):
    prompt_list.read(path)


# The command


def asked(model, out, prompts="the whale\nan emoji\n", **flags):
  listed = out.with_suffix(".txt")
  listed.write_text(prompts)
  given = {"n": 6, "batch": 4, "steps": 2, "few": 3, **flags}
  argv = [f"--from={model}", f"--prompts={listed}", f"--out={out}"]
  return memorised.asked_of(memorised.parse([*argv, *(f"--{k}={v}" for k, v in given.items())]))


def test_what_is_found_is_data_for_a_deletion(model, tmp_path):
  out = tmp_path / "out"
  assert f"wrote 2 of 2 data sets to {out}" in memorised.find(asked(model, out))
  folder = out / "the-whale"
  train, _ = data.load(
    "captions", path=str(folder / "images"), prompts=f"{folder}/prompts.txt", size=16
  )
  assert len(train) == 6 and train.classes == ("the whale",)
  mask = data.Forget(file=str(folder / "forget.txt")).mask(train)
  report = json.loads((folder / "split.json").read_text())
  assert report["share"] == mask.mean() and report["usable"] and 0 < mask.sum() < 6
  found = clusters.read(folder / "kmeans.npz")
  np.testing.assert_array_equal(found.are_memorised(drawing.read(folder, 6).astype(float)), mask)
  assert report["clusters"] == found.identity and "model=" in report["one_step"]["identity"]
  with Image.open(folder / "sheet.png") as sheet, Image.open(folder / "reference.png") as one:
    assert sheet.size[0] == 16 * 17 - 1 and one.size == (16, 16)
  assert len((out / "summary.md").read_text().splitlines()) == 4
  # A picture depends on its number alone; what is there is not drawn again.
  (folder / "images" / "004.png").rename(tmp_path / "old.png")
  lines = (folder / "scores.jsonl").read_text()
  (folder / "scores.jsonl").write_text(lines[: lines.rindex('"one_step"')])  # cut by a kill
  stamp = (folder / "images" / "000.png").stat().st_mtime_ns
  memorised.find(asked(model, out, batch=3))
  assert (folder / "images" / "000.png").stat().st_mtime_ns == stamp
  old, new = (np.float32(Image.open(p)) for p in (tmp_path / "old.png", folder / "images/004.png"))
  assert abs(old - new).max() <= 1
  with pytest.raises(
    ValueError, match=r"were drawn with steps 2 and 3 is asked for now; give anoth"
  ):
    memorised.find(asked(model, out, steps=3))
  # By hand.
  labels = dict.fromkeys(map(drawing.name_of, range(6)), 0) | {"002.png": 1}
  (folder / clusters.LABELS).write_text(json.dumps(labels))
  memorised.find(asked(model, out, prompts="the whale\n", by="labels"))
  assert (folder / "forget.txt").read_text() == "002.png\n"


def test_variants_are_tried_and_one_is_chosen(model, tmp_path):
  out = tmp_path / "out"
  memorised.find(asked(model, out, "the whale\n", vary=3))
  report = json.loads((out / "the-whale" / "split.json").read_text())
  assert report["others"][0]["rule"] == "the original"
  assert len(report["others"]) == 4
  shares = {one["prompt"]: abs(one["share"] - 0.5) for one in report["others"]}
  assert shares[report["asked"]] == min(shares.values())
  assert (out / "the-whale" / "prompts.txt").read_text() == "the whale\n"


def test_a_modified_prompt_by_hand(model, tmp_path):
  out = tmp_path / "out"
  memorised.find(asked(model, out, "the whale\tthe whale ''\n"))
  report = json.loads((out / "the-whale" / "split.json").read_text())
  assert report["asked"] == "the whale ''" and len(report["others"]) == 1
  source = {"path": str(out / "the-whale/images"), "prompts": str(out / "the-whale/prompts.txt")}
  train, _ = data.load("captions", **source, size=16)
  assert train.classes == ("the whale ''", "the whale") and set(train.label) == {0}


@pytest.mark.parametrize("way", ["radius", "sscd"])
def test_no_split_is_one_line(model, tmp_path, way):
  out, least = tmp_path / "out", {"radius": {"radius": 1e6}, "sscd": {"sscd": 0}}[way]
  weights = {"sscd_weights": random_resnet.weights()} if way == "sscd" else {}
  with pytest.raises(ValueError, match=r"^'the whale': all 4 pictures are memorised; a deletion"):
    memorised.find(asked(model, out, "the whale\n", n=4, by=way, **least, **weights))
  assert not (out / "the-whale" / "forget.txt").exists()
  assert (out / "the-whale" / "sheet.png").exists()


@pytest.mark.parametrize(
  ("flags", "error"),
  [
    ({"by": "kmean"}, r"no way to split 'kmean' \(did you mean 'kmeans'\?\)"),
    ({"n": 1}, "--n is 1; use 2 or more"),
    ({"few": 1}, "few is 1; use a whole number, 2 or more"),
    ({"references": "nowhere"}, "--references is 'nowhere', where the-whale.png is not; give a f"),
    ({"by": "sscd", "sscd_weights": "no.pt"}, "SSCD's ResNet-50 needs no.pt, which is not there"),
  ],
)
def test_bad_input_is_one_line(model, tmp_path, flags, error):
  with pytest.raises(ValueError, match=error):
    memorised.find(asked(model, tmp_path / "out", **flags))


def test_a_reference_of_another_size_is_refused(model, tmp_path):
  Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "one.png")
  with pytest.raises(ValueError, match=r"a reference is \(9, 9, 3\) and the pictures are \(16, 16"):
    memorised.find(asked(model, tmp_path / "out", "the whale\n", references=tmp_path / "one.png"))
