"""What is committed for readers: the pages, and the results that they tell of."""

import json
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


def result(name):
  return json.loads((ROOT / "results" / f"{name}.json").read_text())


def flowing(text):
  """A page as one line, whatever its line breaks."""
  return " ".join(text.split())
