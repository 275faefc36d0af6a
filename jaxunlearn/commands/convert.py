"""Make a folder in diffusers' layout of a single file, or of a model and a LoRA.

    jaxunlearn convert --like=hub:OWNER/NAME --file=model.safetensors --out=FOLDER
    jaxunlearn convert --like=FOLDER --lora=lora.safetensors --out=FOLDER

--like is a model in diffusers' layout with the same networks: a folder, hub:OWNER/NAME or
assets:NAME. It gives the settings, the tokenizer and the scheduler, and, without --file, the
weights. What is made is what `audit`, `sample` and config.init_from take. A .ckpt is a pickle,
which can run code: convert it to .safetensors where it was made.
"""

import argparse
import dataclasses
import pathlib

import jax

from jaxunlearn import library, weights
from jaxunlearn.commands import guard
from jaxunlearn.weights import lora, pretrained, single_file, stable_diffusion


def convert(like: str, out: pathlib.Path, file: str = "", lora_file: str = "") -> str:
  """Writes the folder; returns what it did.

  Raises:
    ValueError: no such model or file, one of other networks, or nothing to convert.
  """
  if not file and not lora_file:
    raise ValueError("--file and --lora are missing; name one of them, or both")
  for flag, path in (("file", file), ("lora", lora_file)):
    if path and not pathlib.Path(path).is_file():
      raise ValueError(f"--{flag}={path} is not there; give the path of a .safetensors")
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"--out={out} holds files; name a folder that is new")
  model = library.load_pipeline(like)
  if file:
    model = with_weights(model, pathlib.Path(file))
  if lora_file:
    moved = lora.merge({"unet": model.params["unet"]}, pathlib.Path(lora_file))
    model = dataclasses.replace(model, params={**model.params, **moved})
  stable_diffusion.save(out, model)
  made_of = " and ".join(filter(None, (file, lora_file)))
  return f"wrote {out}: {made_of}, with the settings of {like}"


def with_weights(model: stable_diffusion.Pipeline, file: pathlib.Path) -> stable_diffusion.Pipeline:
  """The model with the weights of a single file; raises ValueError for one of other networks."""
  names = {name: pretrained.views(tree).keys() for name, tree in model.params.items()}
  state = single_file.parts(weights.open_(file), model.unet, model.vae, names)
  shapes = jax.eval_shape(lambda tree: tree, dict(model.params))
  params = {
    name: pretrained.from_state_dict(state[name], shapes[name]) for name in stable_diffusion.PARTS
  }
  return dataclasses.replace(model, params=params)


def start() -> int:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn convert", description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[2]
  )
  parser.add_argument("--like", required=True, metavar="X", help="a model with the same networks")
  parser.add_argument("--file", default="", metavar="FILE", help="a single file's weights")
  parser.add_argument("--lora", default="", metavar="FILE", help="a LoRA of the UNet, merged")
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="a new folder")
  asked = parser.parse_args()
  return guard.guarded(lambda: print(convert(asked.like, asked.out, asked.file, asked.lora)))
