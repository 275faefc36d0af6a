"""Where this user's files are kept between runs: weights, latents, compiled programs."""

import os
import pathlib

VARIABLE = "JAXUNLEARN_CACHE"


def folder() -> pathlib.Path:
  """~/.cache/jaxunlearn; the variable JAXUNLEARN_CACHE moves it."""
  return pathlib.Path(os.environ.get(VARIABLE, "~/.cache/jaxunlearn")).expanduser()
