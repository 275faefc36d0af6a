"""CLIP-IQA and CLIP score: equal to PyTorch's modules on random weights; what is refused."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from torch.nn import functional as F

from jaxunlearn import evals
from jaxunlearn.evals import clip_iqa, clip_score
from jaxunlearn.weights import clip_files
from tests import random_clip

IMAGES = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 70, 64, 3)).astype(np.float32)


class Theirs:
  """CLIP-IQA with PyTorch's own functions, on OpenAI's names."""

  def __init__(self, state):
    self.w = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}

  def norm(self, name, x):
    mean, var = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

  def conv(self, name, x, **how):
    return F.conv2d(x, self.w[f"visual.{name}.weight"], **how)

  def block(self, name, x, stride):
    own = lambda i, x: self.norm(f"visual.{name}.bn{i}", x)
    h = F.relu(own(1, self.conv(f"{name}.conv1", x)))
    h = F.relu(own(2, self.conv(f"{name}.conv2", h, padding=1)))
    h = own(3, self.conv(f"{name}.conv3", F.avg_pool2d(h, stride)))
    if f"visual.{name}.downsample.0.weight" in self.w:
      x = self.conv(f"{name}.downsample.0", F.avg_pool2d(x, stride))
      x = self.norm(f"visual.{name}.downsample.1", x)
    return F.relu(h + x)

  def image(self, x):
    for i, stride in ((1, 2), (2, 1), (3, 1)):
      x = F.relu(self.norm(f"visual.bn{i}", self.conv(f"conv{i}", x, stride=stride, padding=1)))
    x = F.avg_pool2d(x, 2)
    for i, count in enumerate(random_clip.SIZE.blocks):
      for j in range(count):
        x = self.block(f"layer{i + 1}.{j}", x, 2 if i and not j else 1)
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x])
    w = {k.removeprefix("visual.attnpool."): v for k, v in self.w.items() if "attnpool" in k}
    bias = torch.cat([w[f"{one}_proj.bias"] for one in "qkv"])
    pooled, _ = F.multi_head_attention_forward(
      *(x[:1], x, x, x.shape[-1], random_clip.SIZE.heads, None, bias, None, None, False, 0.0),
      *(w["c_proj.weight"], w["c_proj.bias"]),
      use_separate_proj_weight=True,
      **{f"{one}_proj_weight": w[f"{one}_proj.weight"] for one in "qkv"},
      training=False,
      need_weights=False,
    )
    return pooled[0]

  def text(self, ids):
    w, block = self.w, "transformer.resblocks.0"
    x = (w["token_embedding.weight"][ids] + w["positional_embedding"]).permute(1, 0, 2)
    norm = lambda name, x: F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
    mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
    attention = torch.nn.MultiheadAttention(random_clip.WIDTH, 1).eval()
    attention.load_state_dict({name: w[f"{block}.attn.{name}"] for name in attention.state_dict()})
    y = norm(f"{block}.ln_1", x)
    x = x + attention(y, y, y, attn_mask=mask)[0]
    linear = lambda name, x: F.linear(x, w[f"{block}.{name}.weight"], w[f"{block}.{name}.bias"])
    h = linear("mlp.c_fc", norm(f"{block}.ln_2", x))
    x = x + linear("mlp.c_proj", h * torch.sigmoid(1.702 * h))
    x = norm("ln_final", x).permute(1, 0, 2)
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ w["text_projection"]


def test_clip_iqa_is_that_of_pytorchs_functions():
  """By torchmetrics' definition: pixels in [0, 1], normalised, 100 cosines, softmax of the pair."""
  state, theirs = random_clip.resnet_state(), Theirs(random_clip.resnet_state())
  ids = torch.zeros((2, 77), dtype=torch.long)
  ids[:, :5] = torch.tensor([[49406, 886, 1125, 269, 49407], [49406, 2103, 1125, 269, 49407]])
  pixels = np.clip((IMAGES + 1) / 2, 0, 1)
  x = torch.from_numpy(((pixels - clip_files.MEAN) / clip_files.STD).transpose(0, 3, 1, 2))
  with torch.no_grad():
    f, g = (F.normalize(v, dim=-1) for v in (theirs.image(x), theirs.text(ids)))
    want = (100 * f @ g.T).softmax(-1)[:, 0]
  model = clip_files.openai(state)
  np.testing.assert_allclose(clip_iqa.anchors(model), g.numpy(), atol=1e-5)
  np.testing.assert_allclose(clip_iqa.quality(model, IMAGES), want.numpy(), rtol=1e-3, atol=1e-6)


def test_the_clip_score_is_that_of_transformers():
  root = random_clip.folder()
  theirs = transformers.CLIPModel.from_pretrained(root).eval()
  ours, texts = clip_files.folder(str(root)), ["the whale", "an emoji and a hand"]
  x = clip_score.prepare(IMAGES, 8)
  words = transformers.CLIPTokenizer.from_pretrained(root)
  ids = words(texts, padding="max_length", max_length=12, return_tensors="pt").input_ids
  with torch.no_grad():
    out = theirs(input_ids=ids, pixel_values=torch.from_numpy(x.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(ours.of_texts(texts), out.text_embeds.numpy(), atol=1e-5)
  np.testing.assert_allclose(ours.of_images(x), out.image_embeds.numpy(), atol=1e-5)
  cosine = (out.image_embeds @ out.text_embeds.T).numpy()[np.arange(3), [0, 1, 1]]
  got = clip_score.of_pairs(ours, IMAGES, texts, np.array([0, 1, 1]))
  np.testing.assert_allclose(got, 100 * np.maximum(cosine, 0), atol=1e-3)


def test_pictures_are_prepared_as_clips_transform_does():
  """transformers' processor: the short side resized by Pillow, the centre cut, normalised."""
  processor = transformers.CLIPImageProcessorPil(
    size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
  )
  pixels = np.rint((np.clip(IMAGES, -1, 1) + 1) * 127.5).astype(np.uint8)
  want = processor(images=list(pixels), return_tensors="np")["pixel_values"]
  np.testing.assert_allclose(clip_score.prepare(IMAGES, 8).transpose(0, 3, 1, 2), want, atol=0.02)


@pytest.mark.parametrize(
  ("name", "field", "error"),
  [
    ("clip_iqa", "clip_iqa_weights", r"^CLIP-IQA needs .*no, .*SHA-256: afeb0e10f9e5.*clip_iqa_w"),
    ("clip_score", "clip_weights", r"needs a folder .*clip_weights is '.*no'; fetch openai/clip-v"),
  ],
)
def test_weights_that_are_missing_are_named(tmp_path, name, field, error):
  with pytest.raises(ValueError, match=error):
    evals.check(name, evals.Options(**{field: str(tmp_path / "no")}))


def test_weights_of_another_network_are_refused(tmp_path):
  path = tmp_path / "w.safetensors"
  safetensors.numpy.save_file({"fc.weight": np.zeros((2, 2), np.float32)}, path)
  with pytest.raises(
    ValueError, match=r"^these are not the weights of CLIP's RN50 .*; fetch https"
  ):
    evals.check("clip_iqa", evals.Options(clip_iqa_weights=str(path)))
  less = {k: v for k, v in random_clip.resnet_state().items() if k != "visual.bn2.weight"}
  with pytest.raises(
    ValueError, match=r"weights of CLIP's RN50: 'bn2.scale' is missing, left over"
  ):
    clip_files.openai(less)
  shutil.copytree(random_clip.folder(), tmp_path / "clip")
  config = json.loads((tmp_path / "clip" / "config.json").read_text())
  config["vision_config"]["hidden_size"] = 18
  (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"is \(16,.*in the weights and \(18,|no '|is \(6, 16\)"):
    clip_files.folder(str(tmp_path / "clip"))
