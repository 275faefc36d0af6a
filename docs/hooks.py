"""What turns this folder, the README and the docstrings into a site: hooks of mkdocs.yml.

Pages that no file holds: the README as the first one, SECURITY.md, the notebook with its outputs,
and one page of docstrings for each part of the package. Links that lead out of docs/ go to the page
of docstrings of a module, or to a copy of the file.
"""

import base64
import json
import pathlib
import pkgutil
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
OUTSIDE = {"index.md": "README.md", "security.md": "SECURITY.md"}  # page -> file
PARTS = {
  "library": "The library",
  "methods": "Methods",
  "evals": "Metrics",
  "data": "Data",
  "models": "Networks",
  "diffusion": "Process and samplers",
  "cdm": "Compartments",
  "proofs": "Proofs",
}
TITLES = {"quickstart.md": "Quick start", "library.md": "Call it from your code"}
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  first = [{TITLES[name]: name} for name in TITLES]
  pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
  guides = [name for name in pages if name not in TITLES]
  api = [{title: f"api/{part}.md"} for part, title in PARTS.items()]
  config.nav = [{"Home": "index.md"}, *first, {"Guides": [*guides, "security.md"]}, {"API": api}]
  config.markdown_extensions.append(ListsExtension())
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  book = json.loads((ROOT / "docs/quickstart.ipynb").read_text())
  made = {page: (ROOT / name).read_text() for page, name in OUTSIDE.items()}
  made["quickstart.md"] = "\n\n".join(_cells(book))
  for name, png in _pictures(book).items():
    files.append(File.generated(config, name, content=png))
  made |= {f"api/{part}.md": _docstrings(part) for part in PARTS}
  for page, text in made.items():
    files.append(File.generated(config, page, content=text))
  texts = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")} | made
  linked = {_target(page, link[1]) for page, text in texts.items() for link in LINK.finditer(text)}
  for path in sorted(linked - {None}):
    if (ROOT / path).is_file() and _place(path) == f"files/{path}":
      files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
  return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
  name = page.file.src_uri
  markdown = re.sub(r"\n(<!--.*?-->)\n", r"\n\n\1\n\n", markdown)  # or a table is not seen as one

  def moved(link: re.Match[str]) -> str:
    path = _target(name, link[1])
    if path is None or not (ROOT / path).exists():
      return link[0]
    place, _, anchor = _place(path).partition("#")
    anchor = f"#{anchor}" if anchor else link[2] or ""
    return f"]({posixpath.relpath(place, posixpath.dirname(name))}{anchor})"

  return LINK.sub(moved, markdown)


def _target(page: str, link: str) -> str | None:
  """The path from the root that a page's link means; None for a place in the page itself."""
  folder = "" if page in OUTSIDE else "docs"
  return posixpath.normpath(posixpath.join(folder, link)) if link else None


def _place(path: str) -> str:
  """Where the site has a file or folder of the repository."""
  pages = {name: page for page, name in OUTSIDE.items()} | {
    "docs/quickstart.ipynb": "quickstart.md",
    "docs": "index.md",
  }
  if path in pages:
    return pages[path]
  if path.startswith("docs/"):
    return path.removeprefix("docs/")
  module = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
  part = module.removeprefix("jaxunlearn.").partition(".")[0]
  if module.startswith("jaxunlearn.") and part in PARTS:
    return f"api/{part}.md#{module}"
  return f"files/{path}"


def _docstrings(part: str) -> str:
  """A page of a module, and of those inside it; of a method's, its fields."""
  name = f"jaxunlearn.{part}"
  folder = ROOT / "jaxunlearn" / part
  blocks = [f"::: {name}"]
  for module in sorted(module.name for module in pkgutil.iter_modules([str(folder)])):
    path = folder / f"{module}.py"
    fields = path.is_file() and "\nclass Method(" in path.read_text()
    options = "\n    options: {show_if_no_docstring: true, filters: [^Method$]}" if fields else ""
    blocks.append(f"::: {name}.{module}{options}")
  return "\n\n".join([f"# {PARTS[part]}", *blocks])


class Lists(Preprocessor):
  """A list may follow a paragraph without an empty line between, as on GitHub."""

  def run(self, lines: list[str]) -> list[str]:
    out: list[str] = []
    item = re.compile(r" {0,3}([-*]|\d+\.) ")
    for line in lines:
      after_text = bool(out and out[-1].strip()) and not re.match(r" |[-*] |\d+\. ", out[-1])
      out += ["", line] if item.match(line) and after_text else [line]
    return out


class ListsExtension(Extension):
  def extendMarkdown(self, md: Markdown) -> None:
    md.preprocessors.register(Lists(md), "lists", 20)  # fenced code is out of the way by then


def _pictures(book: dict[str, Any]) -> dict[str, bytes]:
  """The pictures among a notebook's outputs, by the names that `_cells` gives them."""
  outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
  pngs = [
    data["image/png"] for output in outputs if "image/png" in (data := output.get("data", {}))
  ]
  return {f"quickstart-{i}.png": base64.b64decode(png) for i, png in enumerate(pngs)}


def _cells(book: dict[str, Any]) -> Iterator[str]:
  """A notebook's cells and outputs as Markdown."""
  names = iter(_pictures(book))
  for cell in book["cells"]:
    source = "".join(cell["source"])
    yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
    for output in cell.get("outputs", []):
      data = output.get("data", {})
      if "image/png" in data:
        yield f"![Output of the cell above]({next(names)})"
      else:
        yield f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```"
