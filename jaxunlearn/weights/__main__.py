"""Fetches every published file that the metrics use: `jaxunlearn weights`.

They stay in ~/.cache/jaxunlearn, or in the folder JAXUNLEARN_CACHE. The module is
`python -m jaxunlearn.weights`.
"""

import argparse
import sys

from jaxunlearn import weights
from jaxunlearn.weights import extractors


def main() -> None:
  argparse.ArgumentParser(prog="jaxunlearn weights", description=__doc__).parse_args()
  try:
    for published in (extractors.INCEPTION, extractors.SSCD):
      path = published.cached if published.cached.is_file() else published.fetch()
      print(f"{path}  sha256 {weights.sha256(path)}  {published.what}")
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
