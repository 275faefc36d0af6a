"""What there is to choose from, one line each: methods, metrics, data, models, configs.

    jaxunlearn list [methods|metrics|data|models|configs]

A line has a name and the first line of what its file says of itself. What an installed package adds
is among them. NAME:VARIANT shows a config's default variant.
"""

import argparse
import ast
from collections.abc import Iterator

from jaxunlearn.commands import configs

KINDS = ("methods", "metrics", "data", "models", "configs")


def start() -> None:
  chosen = parse().what
  for kind in [chosen] if chosen else KINDS:
    if not chosen:
      print(f"{kind}:")
    lines = list(_configs() if kind == "configs" else _modules(kind))
    width = max(len(name) for name, _ in lines)
    for name, says in lines:
      print(f"  {name:<{width}}  {says}")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="jaxunlearn list", description=_first_line(__doc__))
  parser.add_argument("what", nargs="?", choices=KINDS, help="all of them where none is given")
  return parser.parse_args()


def _modules(kind: str) -> Iterator[tuple[str, str]]:
  from jaxunlearn import data, evals, methods, models  # importing JAX is slow; --help is not

  group = {"methods": methods, "metrics": evals, "data": data, "models": models}[kind].CHOICES
  for name in group.names():
    try:
      says = _first_line(group.module(name).__doc__)
    except ValueError as error:  # of a package that is broken
      says = f"error: {error}"
    yield name, says


def _configs() -> Iterator[tuple[str, str]]:
  for name in configs.names():
    variant = configs.variant(name)
    says = _first_line(ast.get_docstring(configs.parsed(name)))
    yield f"{name}:{variant}" if variant else name, says


def _first_line(doc: str | None) -> str:
  return next(iter((doc or "").strip().splitlines()), "")
