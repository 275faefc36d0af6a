"""The project's configs by name, from any folder: `--config=siss_mnist:neggrad`.

In a clone they stand beside the package, installed within it. Config files, the project's and your
own, say `from configs import common` in both.
"""

import ast
import importlib.util
import pathlib
import sys
from collections.abc import Sequence

from jaxunlearn import errors

HELPERS = ("__init__", "audits", "common")  # files that are no config of a run
FLAG = ("--config", "-config")


def folder() -> pathlib.Path:
  """Where the project's configs are."""
  package = pathlib.Path(__file__).parents[1]
  installed = package / "configs"
  return installed if installed.is_dir() else package.parent / "configs"


def names() -> list[str]:
  return sorted(path.stem for path in folder().glob("*.py") if path.stem not in HELPERS)


def parsed(name: str) -> ast.Module:
  """The project's config of that name, read and not run."""
  return ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))


def variant(name: str) -> str:
  """What a config takes where nothing stands after its colon; "" where it has no variants."""
  made = [f for f in parsed(name).body if isinstance(f, ast.FunctionDef)]
  makers = [f for f in made if f.name == "get_config"]
  defaults = [ast.literal_eval(value) for f in makers for value in f.args.defaults]
  return next(iter(defaults), "")


def locate(config: str) -> str:
  """The path of the project's config of that name; a path stays as it is. `:VARIANT` stays too.

  Raises:
    ValueError: no such name, or the path of a project's config from where it is not.
  """
  file, colon, chosen = config.partition(":")
  path = pathlib.Path(file)
  if file in names():
    return f"{folder() / file}.py{colon}{chosen}"
  if path.suffix == ".py" or len(path.parts) != 1:
    if path.stem in names() and not path.exists():
      raise ValueError(f"{file} is not here; write --config={path.stem} for the project's")
    return config
  raise ValueError(
    f"no config {file!r}{errors.nearest(file, names())}; `jaxunlearn list configs` has them all, "
    "and for a file of your own write its .py too"
  )


def spelt_out(argv: Sequence[str]) -> list[str]:
  """The arguments, with the config's path for its name in --config=NAME or --config NAME."""
  out = list(argv)
  for i, (word, before) in enumerate(zip(argv, ["", *argv], strict=False)):
    flag, equals, value = word.partition("=")
    if equals and flag in FLAG:
      out[i] = f"{flag}={locate(value)}"
    elif before in FLAG:
      out[i] = locate(word)
  return out


def expose() -> None:
  """Makes `from configs import NAME` find the project's file, and else that of ./configs."""
  spec = importlib.util.spec_from_file_location(
    "configs",
    folder() / "__init__.py",
    submodule_search_locations=[str(folder()), str(pathlib.Path("configs").absolute())],
  )
  assert spec is not None
  sys.modules.setdefault("configs", importlib.util.module_from_spec(spec))
