"""The pages: every relative link leads to a file and a heading; the notebook runs."""

import json
import pathlib
import re

import numpy as np
import pytest

from tests import notebooks

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")), NOTEBOOK]
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)")
FEW = {
  "STEPS, ROWS = 40, 32": "STEPS, ROWS = 2, 4",
  "T = 250": "T = 3",
  "steps=20": "steps=2",
  '"steps": 20': '"steps": 2',
}


def text_of(page):
  """What a page says besides code."""
  if page.suffix != ".ipynb":
    return CODE.sub("", page.read_text())
  cells = json.loads(page.read_text())["cells"]
  return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def anchors(page):
  """The anchors of a page's headings, as GitHub and the site make them."""
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
  headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
  for link, anchor in LINK.findall(text_of(page)):
    target = page.parent / link if link else page
    assert target.exists(), link
    assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_headings_and_links_are_found_as_github_does(tmp_path):
  page = tmp_path / "page.md"
  page.write_text(
    "# A style or an object: emoji\n\n```\n# no heading\n```\n\n[x](a.md#b) `](c.md)`\n"
  )
  assert anchors(page) == {"a-style-or-an-object-emoji"}
  assert LINK.findall(text_of(page)) == [("a.md", "b")]


def test_the_notebook_runs_with_fewer_steps_and_shows_a_whole_run():
  """The outputs in the file are those of `python -m tests.notebooks docs/quickstart.ipynb`."""
  book = json.loads(NOTEBOOK.read_text())
  code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
  kinds = lambda: [[sorted(out.get("data", out)) for out in cell["outputs"]] for cell in code]
  text = "".join("".join(out.get("text", "")) for cell in code for out in cell["outputs"])
  before, after = map(float, re.findall(r"copy score (\S+)", text))
  assert before > 0.99 and after < 0.6
  assert NOTEBOOK.stat().st_size < 200_000
  stored = kinds()
  assert all(any(old in "".join(cell["source"]) for cell in code) for old in FEW)
  names = notebooks.run(book, FEW)
  assert kinds() == stored
  assert np.isfinite(names["after"]).all() and names["after"].shape == (4, 28, 28, 1)
