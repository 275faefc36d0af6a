"""Where a benchmark's result goes: NAME.json and NAME.md beside each other."""

import json
import pathlib
from typing import Any


def write(out: pathlib.Path | None, name: str, content: Any, page: str) -> None:
  """Writes both into the folder, which is made if need be; None writes nothing."""
  if out is None:
    return
  out.mkdir(parents=True, exist_ok=True)
  (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
  (out / f"{name}.md").write_text(page)
