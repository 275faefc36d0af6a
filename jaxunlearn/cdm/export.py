"""Write some sources of a run as a folder of their own, with a card that names them.

    jaxunlearn cdm export --run=runs/cdm --sources=animals,food --out=FOLDER
      [--policy=FILE --as=NAME]

The folder holds what those sources trained, their parts of the router and the config; the backbone
stays where config.json's init_from has it. `jaxunlearn sample --from=FOLDER` draws from it. Nothing
of another source is read or written. Exit codes as jaxunlearn.main.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxunlearn.cdm import policy, serve
from jaxunlearn.commands import guard
from jaxunlearn.reports import writer

_TOLD = (
  "The files in router/ also hold each condition that a source was trained with (the tokens of a",
  "prompt, or a class), and how many records have it.",
  "",
)


def export(
  run: pathlib.Path, out: pathlib.Path, sources: Sequence[str] = (), license: str = "unknown"
) -> str:
  """Writes the folder; returns what was done, in a line.

  Raises:
    ValueError: no run there, no such source, or `out` is a file or holds something.
  """
  if not serve.is_one(run):
    raise ValueError(f"{run} holds no compartmentalised run; give its working directory")
  if out.is_file() or (out.is_dir() and any(out.iterdir())):
    raise ValueError(f"{out} is there already; give --out another name")
  made = serve.read(run, sources)
  serve.write(out, made, run, {"run": run.resolve().name})
  writer.replace(out / "README.md", card(made, run.resolve().name, license))
  return f"wrote {n(made)} sources of {run} to {out}: {', '.join(made.sources.names)}"


def n(made: serve.Composition) -> int:
  return len(made.sources.names)


def card(made: serve.Composition, run: str, license: str) -> str:
  """The model card, Markdown: which sources, on what, and what is not in the folder."""
  config, sources = made.config, made.sources
  each = sum(leaf.size for leaf in jax.tree.leaves(sources.params)) // n(made)
  rows = zip(sources.names, sources.counts, sources.prior, strict=True)
  lines = [
    "---",
    f"license: {license}",
    "library_name: jaxunlearn",
    "---",
    "",
    f"# A composition of {n(made)} sources",
    "",
    f"Made by the run `{run}` of jaxunlearn, a compartmentalised diffusion model. Each source has",
    "parameters of its own; no parameter of a source that is not named here is in this folder.",
    "",
    "| source | records | prior |",
    "| --- | --- | --- |",
    *(f"| `{name}` | {count} | {prior:.3g} |" for name, count, prior in rows),
    "",
    f"- What a source trained: {_listed(config['compartment'])}, {each:,} parameters",
    f"- The frozen backbone, not in this folder: `{config['init_from'] or 'none'}`",
    f"- What weighs the sources: {_listed(config['router'])}",
    f"- Steps of each: {config['train']['steps']} of {config['train']['batch']} records",
    "",
    *(_TOLD if made.sources.told is not None else ()),
    "`python -m jaxunlearn.sample --from=FOLDER --out=grid.png` draws from it; `--sources=` takes",
    "fewer of them. To take a source back, delete its two files and its line in composition.json.",
  ]
  return "\n".join(lines) + "\n"


def _listed(fields: Mapping[str, Any]) -> str:
  rest = ", ".join(f"{name}={value}" for name, value in fields.items() if name != "name")
  return f"{fields['name']} ({rest})" if rest else str(fields["name"])


def command(args: argparse.Namespace) -> None:
  rights = policy.find(args.run, args.policy)
  names = policy.allowed(rights, args.who, tuple(filter(None, args.sources.split(","))))
  print(export(args.run, args.out, names, args.license))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="jaxunlearn cdm export", description=__doc__.split("\n")[0])
  parser.add_argument("--run", type=pathlib.Path, required=True, help="the working directory")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
  parser.add_argument("--sources", default="", help="names between commas; all if left out")
  parser.add_argument("--policy", default="", help="who may use which source; else the run's own")
  parser.add_argument("--as", dest="who", default="", help="your name in the policy")
  parser.add_argument("--license", default="unknown", help="the licence of the weights")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: command(args))


if __name__ == "__main__":
  sys.exit(start())
