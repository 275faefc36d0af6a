"""Where a benchmark's result goes: NAME.json and NAME.md; and how its page begins."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

BOTH = ("jax", "torch", "diffusers")  # what is timed beside PyTorch


def made(command: str, where: Mapping[str, Any], packages: tuple[str, ...] = ("jax",)) -> str:
  """The command, the machine with its versions, and how busy it was, of siss_step.environment."""
  versions = ", ".join(f"{name} {where[name]}" for name in packages)
  return (
    f"`{command}` on {where['machine']}; {versions}. "
    f"Load before the start: {where['load_before']:.2f}."
  )


def write(out: pathlib.Path | None, name: str, content: Any, page: str) -> None:
  """Writes both into the folder, which is made if need be; None writes nothing."""
  if out is None:
    return
  out.mkdir(parents=True, exist_ok=True)
  (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
  (out / f"{name}.md").write_text(page)
