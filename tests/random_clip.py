"""CLIP in miniature with random weights, in files of OpenAI's names and of transformers'."""

import functools
import json
import pathlib
import re
import tempfile

import jax
import numpy as np
import safetensors.numpy

from jaxunlearn.models import clip, clip_resnet
from jaxunlearn.weights import pretrained
from tests import tiny_pipeline

_FOLDER = tempfile.TemporaryDirectory(prefix="jaxunlearn-clip-")  # goes with the process
SIZE = clip_resnet.Size((1, 1, 1, 2), 4, 2, 6)  # two heads of 64 channels
WIDTH, WORDS, PLACES = 64, 49408, 77


@functools.cache
def resnet_weights() -> pathlib.Path:
  """OpenAI's names."""
  path = pathlib.Path(_FOLDER.name) / "resnet.safetensors"
  safetensors.numpy.save_file(resnet_state(), path)
  return path


@functools.cache
def resnet_state() -> dict[str, np.ndarray]:
  """Such that activations stay O(1), statistics of norms included."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: np.float32(rng.standard_normal(shape) / max(shape[-1], 4) ** 0.5)
  state = {
    "token_embedding.weight": draw(WORDS, WIDTH),
    "positional_embedding": draw(PLACES, WIDTH),
    "text_projection": draw(WIDTH, SIZE.output),
    "logit_scale": np.float32([4.6]),
    "visual.attnpool.positional_embedding": draw(50, 32 * SIZE.width),
  }
  for name in ("ln_final", "transformer.resblocks.0.ln_1", "transformer.resblocks.0.ln_2"):
    state |= {f"{name}.weight": 1 + 0.1 * draw(WIDTH), f"{name}.bias": 0.1 * draw(WIDTH)}
  block = "transformer.resblocks.0"
  for name, rows, columns in (
    ("attn.in_proj_", 3 * WIDTH, WIDTH),
    ("attn.out_proj.", WIDTH, WIDTH),
    ("mlp.c_fc.", 4 * WIDTH, WIDTH),
    ("mlp.c_proj.", WIDTH, 4 * WIDTH),
  ):
    state |= {f"{block}.{name}weight": draw(rows, columns), f"{block}.{name}bias": draw(rows)}
  net, images = clip_resnet.ResNet(SIZE), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
  for path, leaf in jax.tree.leaves_with_path(shapes):
    *module, kind = (key.key for key in path)
    name = re.sub(r"_(\d)\b", r".\1", ".".join(["visual", *module]))
    state[f"{name}.{KINDS.get(kind, kind)}"] = _value(rng, kind, leaf.shape)
  return state


PARTS = {"text": clip.Text, "vision": clip.Vision}
KINDS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _value(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
  if kind in ("scale", "var"):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  fan = np.prod(shape[:-1]) if len(shape) > 1 else 9
  value = rng.standard_normal(shape).astype(np.float32) * np.float32((2 / fan) ** 0.5)
  return np.ascontiguousarray(value.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), (0,))))


@functools.cache
def folder() -> pathlib.Path:
  """A folder that transformers' CLIPModel reads too."""
  root = pathlib.Path(_FOLDER.name) / "clip"
  tiny_pipeline.write_tokenizer(root)
  words = len(json.loads((root / "vocab.json").read_text()))
  tower = {"intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
  own = {
    "text": {"hidden_size": 12, "vocab_size": words, "max_position_embeddings": 12, **tower},
    "vision": {"hidden_size": 16, "image_size": 8, "patch_size": 4, **tower},
  }
  ids = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
  config = {"text_config": own["text"] | ids, "vision_config": own["vision"], "projection_dim": 6}
  (root / "config.json").write_text(json.dumps({"model_type": "clip", **config}))
  nets = (make(**own[part], projection_dim=6) for part, make in PARTS.items())
  state = {"logit_scale": np.array(2.6, np.float32)}
  for prefix, net, seed in zip(("text_model.", "vision_model."), nets, (0, 1), strict=True):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    draw = functools.partial(rng.normal, 0, 0.3)
    params = jax.tree.map(lambda leaf, draw=draw: np.float32(draw(leaf.shape)), shapes)
    for name, value in pretrained.to_state_dict(params).items():
      state[name if "projection" in name else prefix + name] = value
  safetensors.numpy.save_file(state, root / "model.safetensors", metadata={"format": "pt"})
  return root
