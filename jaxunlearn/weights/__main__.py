"""Fetches every published file that the metrics use: `python -m jaxunlearn.weights`."""

import sys

from jaxunlearn import weights
from jaxunlearn.models import inception, resnet


def main() -> None:
  try:
    for published in (inception.PUBLISHED, resnet.PUBLISHED):
      path = published.cached if published.cached.is_file() else published.fetch()
      print(f"{path}  sha256 {weights.sha256(path)}  {published.what}")
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
