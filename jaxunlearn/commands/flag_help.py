"""--help of the commands whose flags are absl's: the command's text and its own flags, exit code 0.

absl's own --help ends with exit code 1 and lists the flags of the module that was started, which is
another one where `jaxunlearn` starts it.
"""

import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags

ASKED = ("h", "?", "help", "helpshort", "helpfull", "helpxml")


def answer(argv: Sequence[str], doc: str | None, own: Sequence[flags.FlagHolder[Any]]) -> None:
  """Prints the help and leaves with code 0 where the arguments ask for it."""
  if any(_name(word) in ASKED for word in argv[1:]):
    print((doc or "").strip(), "\nFlags:", *map(_line, own), sep="\n")
    sys.exit(0)


def _name(word: str) -> str:
  """The flag's name, with one dash or two, whatever it is set to; "" for no flag."""
  dashes = len(word) - len(word.lstrip("-"))
  return word.lstrip("-").partition("=")[0] if dashes in (1, 2) else ""


def _line(holder: flags.FlagHolder[Any]) -> str:
  """A flag with its help and its default, on lines of 100 characters."""
  flag = flags.FLAGS[holder.name]
  default = "" if flag.default in (None, False, "") else f" Default: {flag.default}."
  text = f"  --{flag.name:<14} {flag.help}{default}"
  return textwrap.fill(text, width=100, subsequent_indent=" " * 19, drop_whitespace=True)
