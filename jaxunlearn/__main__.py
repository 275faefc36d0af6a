"""The command `jaxunlearn`, also `python -m jaxunlearn`: all the project's commands."""

import importlib
import sys
from collections.abc import Callable, Sequence

from jaxunlearn import __version__, errors

# The function of each, imported when it is asked for: importing JAX is slow, --help is not.
COMMANDS = {
  "run": ("jaxunlearn.main:start", "Train, unlearn or attack a model, as a config says."),
  "export": ("jaxunlearn.export:start", "Write a run as a folder that diffusers loads."),
  "convert": ("jaxunlearn.commands.convert:start", "Make a folder of a single file, or of a LoRA."),
  "sample": ("jaxunlearn.commands.sample:start", "Draw samples of a model, of prompts or classes."),
  "answer": ("jaxunlearn.answer.__main__:start", "Answer a request to delete, with a letter."),
  "memorised": ("jaxunlearn.commands.memorised:start", "Find what a model has memorised."),
  "audit": ("jaxunlearn.commands.audit:start", "Attack a model of anybody's, and say what came."),
  "leaderboard": ("jaxunlearn.commands.leaderboard:start", "One table of several audits."),
  "verify-export": ("jaxunlearn.proofs.export_signature:start", "Check a signed export."),
  "weights": ("jaxunlearn.weights.__main__:main", "Fetch the published files of the metrics."),
  "cdm delete": ("jaxunlearn.cdm.delete:start", "Delete records or a source from a CDM, exactly."),
  "cdm add": ("jaxunlearn.cdm.add:start", "Add a source to a CDM."),
  "cdm compare": ("jaxunlearn.cdm.compare_run:start", "Compare attributions with the exact one."),
  "cdm ids": ("jaxunlearn.cdm.ids:start", "Print which records a source trains on."),
  "cdm export": ("jaxunlearn.cdm.export:start", "Write some sources of a CDM, with their card."),
  "cdm verify": ("jaxunlearn.cdm.verify:cli", "Check the ledger of a CDM, and its files."),
  "cdm sign-ledger": ("jaxunlearn.cdm.sign_ledger:start", "Sign the ledger, for others to keep."),
  "cdm proof": ("jaxunlearn.cdm.proof:start", "Prove to others that one record was deleted."),
  "cdm migrate-ledger": ("jaxunlearn.cdm.migrate:start", "Make an old ledger one that forgets."),
  "list": ("jaxunlearn.commands.listing:start", "List methods, metrics, data, models, configs."),
}
HELP = ("-h", "--help", "help")


def usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}} {says}" for name, (_, says) in COMMANDS.items()]
  return "\n".join(
    [
      "usage: jaxunlearn COMMAND [FLAGS]",
      "",
      "Machine unlearning for diffusion models. A CDM is a model in compartments, one a source.",
      "",
      *lines,
      "",
      "`jaxunlearn COMMAND --help` says more; `jaxunlearn --version` says which version this is.",
      "Begin with: jaxunlearn run --config=siss_mnist --workdir=runs/siss_mnist",
    ]
  )


def split(words: Sequence[str]) -> tuple[str, list[str]]:
  """The command in front, of one word or two, and what follows; "" where help is asked for."""
  families = {name.split()[0] for name in COMMANDS if " " in name}
  count = 2 if words and words[0] in families else 1
  asks = len(words) < count or words[count - 1] in HELP
  return "" if asks else " ".join(words[:count]), list(words[count:])


def find(name: str) -> Callable[[], int | None]:
  """The function of that command; raises ValueError where there is none."""
  errors.check_choice("command", name, COMMANDS)
  module, _, function = COMMANDS[name][0].partition(":")
  return getattr(importlib.import_module(module), function)


def main() -> None:
  name, rest = split(sys.argv[1:])
  if not name:
    print(usage())
    return
  if name == "--version":
    print(f"jaxunlearn {__version__}")
    return
  try:
    start = find(name)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(errors.BAD_INPUT)
  sys.argv = [f"jaxunlearn {name}", *rest]
  sys.exit(start())


if __name__ == "__main__":
  main()
