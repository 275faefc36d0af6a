"""`python -m jaxunlearn.leaderboard` is `jaxunlearn leaderboard`: see commands/leaderboard.py."""

import sys

from jaxunlearn.commands import leaderboard

if __name__ == "__main__":
  sys.exit(leaderboard.start())
