"""A whole text-to-image model as a folder of diffusers' StableDiffusionPipeline, both ways.

    FOLDER/model_index.json
    FOLDER/unet, FOLDER/vae, FOLDER/text_encoder    config.json and weights
    FOLDER/tokenizer                                vocab.json, merges.txt and two configs
    FOLDER/scheduler/scheduler_config.json

Read are also the names that older files have: the autoencoder's attention as query, key, value;
the text encoder with its prefix or without, with `position_ids` or without. Written are names that
every version of transformers reads. The safety checker is no part of the model: it is left behind.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jaxunlearn import checkpoint, latents, models, weights
from jaxunlearn.diffusion import Diffusion, EpsFn, guidance, sampling
from jaxunlearn.mesh import sharding
from jaxunlearn.models import clip, text_to_image, text_unet, vae
from jaxunlearn.weights import (
  arrays,
  layout,
  of_run,
  pipeline_config,
  pretrained,
  scheduler_config,
  tokenizer,
)
from jaxunlearn.weights.layout import CONFIG, NAMED, PIPELINE, SCHEDULER, WEIGHTS
from jaxunlearn.weights.tokenizer import Tokenizer

Tree = Any
PIPELINE_CLASS = "StableDiffusionPipeline"
PARTS = ("unet", "vae", "text_encoder")
PUBLISHED = {  # bytes of a file -> the first digits of its SHA-256, and whose weights it has
  3_438_167_534: ("145a07e0f05e", "the UNet of CompVis/stable-diffusion-v1-4"),
  3_438_167_536: ("ac3d1bff03f9", "the UNet of CompVis/stable-diffusion-v1-4, without average"),
  1_719_125_304: ("a35404d03ec8", "the UNet of CompVis/stable-diffusion-v1-4, in half precision"),
  3_438_167_540: ("19da7aaa4b88", "the UNet of stable-diffusion-v1-5"),
  3_463_726_498: ("6dfae3e5f7d4", "the UNet of stabilityai/stable-diffusion-2-1-base"),
  334_643_276: ("a2b5134f4dbc", "the autoencoder of stable-diffusion-v1-4 and v1-5"),
  492_265_879: ("7b3a12df205c", "the text encoder of CompVis/stable-diffusion-v1-4"),
  492_265_874: ("d008943c017f", "the text encoder of stable-diffusion-v1-5"),
  1_361_597_018: ("cce6febb0b6d", "the text encoder of stabilityai/stable-diffusion-2-1-base"),
}


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """Three networks with their parameters, the tokenizer, the process and how it is sampled."""

  unet: text_unet.Net
  vae: vae.Autoencoder
  text: clip.Text
  tokenizer: Tokenizer
  process: Diffusion
  sampler: sampling.Options
  scheduler: Mapping[str, Any]  # what only its own sampler reads, and its class
  params: Mapping[str, Tree]  # of PARTS
  folder: pathlib.Path  # where it was read

  @property
  def codec(self) -> latents.Codec:
    """Pictures <-> latents, as many at a time as take a gigabyte."""
    pixels = (self.unet.sample_size * self.vae.factor) ** 2
    return latents.Codec(self.vae, self.params["vae"], max(1, latents.ROOM // pixels))

  def eps_fn(self, prompts: Sequence[str], scale: float = 1.0) -> EpsFn:
    """The noise predictor of the prompts by their numbers 0, 1, ..., encoded once.

    `scale` is that of guidance as Stable Diffusion counts it: eps_null + scale (eps_c - eps_null).
    """
    net = text_to_image.Net(self.unet, self.text, (len(prompts),))
    states = self.states(prompts)
    params = {
      "unet": self.params["unet"],
      "states": {"prompts": states[:-1], "empty": states[-1]},
    }
    apply = self.process.predictor(net.apply)
    eps_fn = jax.tree_util.Partial(apply, jax.device_put(params))  # on a CPU no copy is made
    return guidance.guided(eps_fn, scale - 1)

  def states(self, prompts: Sequence[str]) -> jax.Array:
    """The states [P + 1, L, D] of the prompts and of the empty one; says what does not fit."""
    encoded = self.tokenizer.encode([*prompts, ""])
    for prompt, cut in zip(prompts, encoded.cut, strict=False):
      if cut:
        logging.warning(
          "%r is cut to %d tokens; left out is %r", prompt, self.tokenizer.length, cut
        )
    return jax.jit(self.text.states)(jax.device_put(self.params["text_encoder"]), encoded.ids)


def load(folder: pathlib.Path) -> Pipeline:
  """The model in a folder.

  Raises:
    ValueError: a part is missing or damaged, is not implemented, or does not fit the others.
  """
  folder = pathlib.Path(folder)
  net, autoencoder, text, words = _networks(folder)
  found = pretrained.read_scheduler(folder)
  if found is None:
    raise ValueError(f"{folder / 'scheduler' / SCHEDULER} does not exist; fetch it with the model")
  return Pipeline(
    unet=net,
    vae=autoencoder,
    text=text,
    tokenizer=words,
    process=Diffusion(**found.process),
    sampler=sampling.Options.of(found.sampler),
    scheduler=found.rest,
    params={
      "unet": pretrained.from_state_dict(_state(folder, "unet"), models.shapes(net)),
      "vae": pretrained.from_state_dict(_state(folder, "vae"), models.shapes(autoencoder)),
      "text_encoder": pretrained.text_encoder(_state(folder, "text_encoder"), models.shapes(text)),
    },
    folder=folder,
  )


def _networks(
  folder: pathlib.Path,
) -> tuple[text_unet.Net, vae.Autoencoder, clip.Text, Tokenizer]:
  """What the configs describe, checked against one another; raises ValueError."""
  for name in (*PARTS, "tokenizer"):
    if not (folder / name).is_dir():
      raise ValueError(
        f"{folder / name} does not exist; give the whole folder of a text-to-image model: "
        f"{', '.join(PARTS)}, tokenizer and scheduler"
      )
  paths = {name: folder / name / CONFIG for name in PARTS}
  configs = {name: layout.read_json(path) for name, path in paths.items()}
  net = text_unet.Net(**pipeline_config.read_unet(configs["unet"], paths["unet"]))
  autoencoder = vae.Autoencoder(**pipeline_config.read_vae(configs["vae"], paths["vae"]))
  fields = pipeline_config.read_text(configs["text_encoder"], paths["text_encoder"])
  words = tokenizer.load(folder / "tokenizer")
  text = clip.Text(**fields, end=words.id_of(tokenizer.END))
  agree(folder, net, autoencoder, text, words)
  return net, autoencoder, text, words


def agree(
  folder: pathlib.Path,
  net: text_unet.Net,
  autoencoder: vae.Autoencoder,
  text: clip.Text,
  words: Tokenizer,
) -> None:
  """Raises ValueError where the parts are not of one model."""
  pairs = (
    ("unet", "in_channels", net.in_channels, "vae", "latents", autoencoder.latent_channels),
    ("unet", "text states", net.cross_attention_dim, "text_encoder", "states", text.hidden_size),
    ("text_encoder", "tokens", text.vocab_size, "tokenizer", "tokens", words.vocabulary),
    ("text_encoder", "places", text.max_position_embeddings, "tokenizer", "length", words.length),
  )
  for a, what, mine, b, of, theirs in pairs:
    if mine != theirs:
      raise ValueError(
        f"{folder}: {a} has {mine} {what} and {b} {theirs} {of}; take both from one model"
      )


def _state(folder: pathlib.Path, name: str) -> Mapping[str, np.ndarray]:
  """A part's weights; says whose they are where that is known."""
  for path in (folder / name).glob("*.safetensors"):
    digest, what = PUBLISHED.get(path.stat().st_size, ("", ""))
    if digest and weights.sha256(path).startswith(digest):
      logging.info("%s is %s", path, what)
  return layout.state(folder, name)


def of_newest(run: of_run.Newest) -> Pipeline:
  """The whole model of a run: what it trained, with the parts that it was given.

  Raises:
    ValueError: the model that it began with is not there any more, or has no such part; or the run
      trained the states of its prompts.
  """
  config, net = run.config, run.net
  if "states" in run.params:
    raise ValueError(
      "the run trained the states of its own prompts, for which a pipeline has no place; look at "
      "its samples, or start another run from it"
    )
  codec = read_codec(config["codec"]["path"], config["codec"]["batch"])
  return Pipeline(
    unet=net.unet,
    vae=codec.net,
    text=net.text,
    tokenizer=read_tokenizer(config["prompts"]["tokenizer"]),
    process=Diffusion(**config["process"]),
    sampler=sampling.Options.of(config["sampler"]),
    scheduler=config["scheduler"],
    params={**run.params, "vae": codec.params},
    folder=layout.locate(config["codec"]["path"]),
  )


def with_token(model: Pipeline, new: Sequence[str], rows: np.ndarray) -> Pipeline:
  """The model with new tokens and their embeddings [n, D]."""
  text = text_to_image.with_rows(model.params["text_encoder"], jnp.asarray(rows))
  return dataclasses.replace(
    model,
    text=text_to_image.more_tokens(model.text, len(new)),
    tokenizer=model.tokenizer.with_tokens(new),
    params={**model.params, "text_encoder": text},
  )


def read_codec(origin: str, batch: int) -> latents.Codec:
  """The autoencoder of a model, or one that a run trained: configs/pretrain_little_vae.py.

  Raises:
    ValueError: none is there, or it is damaged.
  """
  folder = layout.locate(origin)
  if (folder / "checkpoints").is_dir():
    return _trained_codec(folder, batch)
  path = layout.part(folder, "vae") / CONFIG
  net = vae.Autoencoder(**pipeline_config.read_vae(layout.read_json(path), path))
  params = pretrained.from_state_dict(_state(folder, "vae"), models.shapes(net))
  return latents.Codec(net, params, batch)


def _trained_codec(run: pathlib.Path, batch: int) -> latents.Codec:
  """The average that a run of an autoencoder ended with, and its scale of the latents."""
  config, results = (layout.read_json(run / name) for name in (CONFIG, "results.json"))
  if "autoencoder" not in config:
    raise ValueError(f"{run} trained no autoencoder; name a run that did, or a model with one")
  net = vae.Autoencoder(
    **{**config["autoencoder"], "scaling_factor": float(results["scaling_factor"])}
  )
  shapes = sharding.shaped(sharding.make_mesh(1), models.shapes(net))
  return latents.Codec(net, checkpoint.read_params(run, shapes, "ema"), batch)


def read_tokenizer(origin: str) -> Tokenizer:
  """The tokenizer of a model, or the one in a folder; raises ValueError where there is none."""
  return tokenizer.load(layout.part(layout.locate(origin), "tokenizer"))


def save(folder: pathlib.Path, model: Pipeline) -> None:
  """Writes the model as a folder that diffusers' StableDiffusionPipeline loads.

  The tokenizer's files, and a licence where there is one, are those of the folder it came from.
  """
  folder = pathlib.Path(folder)
  params = {name: pretrained.views(model.params[name]) for name in PARTS}
  text = {
    f"{pretrained.TEXT_PREFIX}{name}": value for name, value in params["text_encoder"].items()
  }
  _write_part(folder / "unet", pipeline_config.write_unet(model.unet), params["unet"], WEIGHTS)
  _write_part(folder / "vae", pipeline_config.write_vae(model.vae), params["vae"], WEIGHTS)
  _write_part(folder / "text_encoder", pipeline_config.write_text(model.text), text, NAMED)
  written = scheduler_config.write(model.process, model.sampler, model.scheduler)
  _write_json(folder / "scheduler" / SCHEDULER, written)
  _write_json(folder / PIPELINE, index(model.scheduler))
  model.tokenizer.save(folder / "tokenizer")
  for name in layout.LICENCES:
    if (model.folder / name).is_file() and model.folder.resolve() != folder.resolve():
      shutil.copyfile(model.folder / name, folder / name)


def index(scheduler: Mapping[str, Any]) -> dict[str, Any]:
  """model_index.json: what is what."""
  return {
    "_class_name": PIPELINE_CLASS,
    "_diffusers_version": scheduler_config.VERSION,
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", scheduler.get("class_name", scheduler_config.DEFAULT)],
    "text_encoder": ["transformers", pipeline_config.TEXT],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", pipeline_config.UNET],
    "vae": ["diffusers", pipeline_config.VAE],
  }


def _write_part(
  folder: pathlib.Path, config: Mapping[str, Any], state: Mapping[str, np.ndarray], name: str
) -> None:
  _write_json(folder / CONFIG, config)
  arrays.write(folder / name, state)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
