"""Runs a notebook's code cells in one namespace, as Jupyter would, without Jupyter.

    python -m tests.notebooks docs/quickstart.ipynb    # runs it here and keeps what it shows

A cell shows what it prints, and its last expression: a picture as PNG, else its repr.
"""

import ast
import base64
import contextlib
import io
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any


def run(notebook: dict[str, Any], replace: Mapping[str, str] | None = None) -> dict[str, Any]:
  """The names that its cells leave; outputs are put in. `replace` changes the text first."""
  names: dict[str, Any] = {"__name__": "__main__"}
  code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  for number, cell in enumerate(code, 1):
    text = "".join(cell["source"])
    for old, new in (replace or {}).items():
      text = text.replace(old, new)
    cell["outputs"], cell["execution_count"] = _run_cell(text, number, names), number
  return names


def _run_cell(text: str, number: int, names: dict[str, Any]) -> list[dict[str, Any]]:
  """Outputs in Jupyter's form."""
  tree = ast.parse(text)
  last = tree.body.pop().value if isinstance(tree.body[-1], ast.Expr) else None
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(compile(tree, f"cell {number}", "exec"), names)
    value = last and eval(compile(ast.Expression(last), f"cell {number}", "eval"), names)
  outputs: list[dict[str, Any]] = []
  if printed.getvalue():
    outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
  if value is not None:
    shown = {"execution_count": number, "metadata": {}, "data": _shown(value)}
    outputs.append({"output_type": "execute_result", **shown})
  return outputs


def _shown(value: Any) -> dict[str, str]:
  if png := getattr(value, "_repr_png_", lambda: None)():
    return {"image/png": base64.b64encode(png).decode(), "text/plain": type(value).__name__}
  return {"text/plain": repr(value)}


if __name__ == "__main__":
  path = pathlib.Path(sys.argv[1])
  book = json.loads(path.read_text())
  run(book)
  path.write_text(json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
