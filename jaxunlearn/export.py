"""A run as a folder that diffusers loads: weights, configs, a model card and its loss curve.

    jaxunlearn export --run=runs/siss_celeba --out=FOLDER [--raw] [--half] [--license=apache-2.0]
      [--deleted=ids|sha256|count] [--base=OWNER/NAME] [--sign_key=PEM]

Takes the newest checkpoint: its averaged parameters (EMA), or the raw ones where the run keeps no
average; --half writes them in float16. training.json holds the step, the losses at up to 200 steps
and the run's config.train. README.md is the card; model_card.py says what stands in it.
lineage.json names the export, and the run lists it by that name. With --sign_key, an elliptic key,
model.sig is a signature of every file in the folder: `jaxunlearn verify-export` checks it.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from jaxunlearn.commands import flag_help
from jaxunlearn.errors import BAD_INPUT

_RUN = flags.DEFINE_string("run", None, "The working directory of the run.")
_OUT = flags.DEFINE_string("out", None, "The folder to write; made if need be.")
_RAW = flags.DEFINE_bool("raw", False, "Take the raw parameters even where the run keeps an EMA.")
_HALF = flags.DEFINE_bool("half", False, "Write the weights in float16: half the size.")
_SIGN_KEY = flags.DEFINE_string("sign_key", "", "Sign the folder with this key, a PEM file.")
_CARD = {
  "license": flags.DEFINE_string("license", "unknown", "The licence of the weights."),
  "deleted": flags.DEFINE_string("deleted", "sha256", "Tell what was deleted: ids, sha256, count."),
  "base": flags.DEFINE_string("base", "", "What the run started from; its init_from if empty."),
}
POINTS = 200


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]!r} is not a flag; write --run=DIRECTORY --out=FOLDER")
  from jaxunlearn import checkpoint  # importing JAX is slow; --help is not

  try:
    if _RUN.value is None or _OUT.value is None:
      raise ValueError("--run or --out is missing; try --run=runs/NAME --out=FOLDER")
    card = {name: flag.value for name, flag in _CARD.items()}
    key = pathlib.Path(_SIGN_KEY.value) if _SIGN_KEY.value else None
    run, out = pathlib.Path(_RUN.value), pathlib.Path(_OUT.value)
    print(export(run, out, _RAW.value, key, _HALF.value, **card))
  except (ValueError, OSError, checkpoint.Damaged) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def export(
  run: pathlib.Path,
  out: pathlib.Path,
  raw: bool = False,
  sign_key: pathlib.Path | None = None,
  half: bool = False,
  **card: str,
) -> str:
  """Writes the folder `out` from the newest checkpoint of `run`; returns what was done, in a line.

  `card` are fields of `model_card.Options`. Each file appears whole or not at all; a signature of
  what stood there before goes.

  Raises:
    ValueError: no run there, a model of another package, no checkpoint of its config's model, data
      that the card needs is not there, `out` is a file, or it cannot be signed with that key.
    Damaged: the newest checkpoint is damaged.
  """
  import jax

  from jaxunlearn import diffusion
  from jaxunlearn.diffusion import sampling
  from jaxunlearn.mesh import sharding
  from jaxunlearn.models import text_to_image, unet, uvit
  from jaxunlearn.proofs import export_signature
  from jaxunlearn.reports import lineage, model_card, writer
  from jaxunlearn.weights import learned_token, lora, of_run, pretrained, stable_diffusion

  if out.is_file():
    raise ValueError(f"{out} is a file; give --out another name")
  options = model_card.Options(**card)
  newest = of_run.read(run, raw, model_card.FIELDS)
  config, net, params, item, step = newest
  stored = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float16), tree) if half else tree
  if not isinstance(net, unet.Net | uvit.Net | text_to_image.Net):
    raise ValueError(
      f"model {config['model']['name']} has no layout of files here; export another, and read this "
      "one by checkpoint.read_params"
    )
  curve = loss_curve(writer.read(run / "metrics.jsonl"), step)
  training = {"weights": item, "final_step": step, "train": config["train"], **curve}
  readme = model_card.render(run, config, item, step, options)
  out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out) as temporary:
    made = pathlib.Path(temporary)
    if isinstance(net, text_to_image.Net):
      model = stable_diffusion.of_newest(newest)
      stable_diffusion.save(made, dataclasses.replace(model, params=stored(model.params)))
      kind, own, _ = of_run.parts(run, net, sharding.make_mesh(1), item)
      if kind.rank:
        lora.save(made, kind, own)
      if kind.pattern == "token":
        learned_token.save(made, config["prompts"]["token"], np.asarray(own["token"]))
    else:
      process = diffusion.Diffusion(**config["process"])
      sampler = sampling.Options.of(config.get("sampler", {}))
      pretrained.save(made, net, stored(params), process, sampler, config.get("scheduler", {}))
    (made / "training.json").write_text(json.dumps(training) + "\n")
    (made / "README.md").write_text(readme, encoding="utf-8")
    facts = lineage.exported(run, step, item, lineage.export_name(out))
    (made / lineage.FILE).write_text(json.dumps(facts) + "\n")
    (out / export_signature.FILE).unlink(missing_ok=True)
    for path in filter(pathlib.Path.is_file, sorted(made.rglob("*"))):
      target = out / path.relative_to(made)
      target.parent.mkdir(exist_ok=True)
      path.replace(target)
  if sign_key:
    export_signature.sign(out, sign_key)
  lineage.note_export(run, out, facts)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  return f"wrote {item} of {run} at step {step} ({count:,} parameters) to {out}"


def loss_curve(lines: Sequence[dict[str, Any]], last: int) -> dict[str, list]:
  """`step` and each `loss_*` of at most POINTS lines up to step `last`, evenly spread over them."""
  names = sorted({name for line in lines for name in line if name.startswith("loss_")})
  lines = [line for line in lines if line["step"] <= last and names and names[0] in line]
  picks = np.linspace(0, len(lines) - 1, min(len(lines), POINTS)).round().astype(int)
  return {name: [lines[i][name] for i in picks] for name in ("step", *names)}


def start() -> None:
  flag_help.answer(sys.argv, __doc__, [_RUN, _OUT, _RAW, _HALF, _SIGN_KEY, *_CARD.values()])
  # Orbax's infos and warnings would bury the one line.
  app.call_after_init(lambda: logging.set_verbosity(logging.ERROR))
  app.run(main)


if __name__ == "__main__":
  start()
