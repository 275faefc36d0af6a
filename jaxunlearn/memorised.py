"""`python -m jaxunlearn.memorised` is `jaxunlearn memorised`: see commands/memorised.py."""

import sys

from jaxunlearn.commands import memorised

if __name__ == "__main__":
  sys.exit(memorised.start())
