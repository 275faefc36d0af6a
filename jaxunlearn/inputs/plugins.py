"""Modules that are chosen by name: this project's own, and those that installed packages add.

A package adds a method, a metric, a data source or a model by an entry point (docs/plugins.md):

    [project.entry-points."jaxunlearn.methods"]
    mine = "my_package.mine"
"""

import dataclasses
import functools
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

from jaxunlearn import errors


@dataclasses.dataclass(frozen=True)
class Group:
  """The modules of one folder of this project, and the entry points of the same name."""

  package: str  # jaxunlearn.methods
  kind: str  # what one of them is, in words
  part: str  # what each of them has, like `Method`
  helpers: tuple[str, ...] = ()  # modules of the folder that are none

  def names(self) -> list[str]:
    """The names that can be chosen, in order."""
    return sorted({*self._ours(), *(entry.name for entry in self.plug_ins())})

  def plug_ins(self) -> Sequence[metadata.EntryPoint]:
    """What installed packages add."""
    return _entry_points(self.package, tuple(sys.path))

  def module(self, name: str) -> ModuleType:
    """The module of that name.

    Raises:
      ValueError: no such name, or one of two packages; a plug-in that does not import, or that
        lacks its part.
    """
    errors.check_choice(self.kind, name, self.names())
    entry = self._plug_in(name)
    if entry is None:
      return importlib.import_module(f"{self.package}.{name}")
    try:
      module = importlib.import_module(entry.module)
    except Exception as error:
      raise ValueError(
        f"{self.kind} {name!r} of package {owner(entry)} cannot be imported "
        f"({type(error).__name__}: {_first_line(error)}); repair the package or uninstall it"
      ) from error
    if not hasattr(module, self.part):
      raise ValueError(
        f"{self.kind} {name!r} of package {owner(entry)}: {entry.module} has no {self.part!r}; "
        "docs/plugins.md says what a plug-in has"
      )
    return module

  def _ours(self) -> list[str]:
    folder = sys.modules[self.package].__path__
    return [m.name for m in pkgutil.iter_modules(folder) if m.name not in self.helpers]

  def _plug_in(self, name: str) -> metadata.EntryPoint | None:
    """The entry point of that name, if it is none of ours; raises ValueError for two owners."""
    found = [entry for entry in self.plug_ins() if entry.name == name]
    owners = ["jaxunlearn"] * (name in self._ours()) + sorted(map(owner, found))
    if len(owners) > 1:
      raise ValueError(
        f"{self.kind} {name!r} comes from the packages {' and '.join(owners)}; uninstall "
        f"{owners[-1]}, or ask its authors for another name"
      )
    return found[0] if found else None


def owner(entry: metadata.EntryPoint) -> str:
  """The package that an entry point came with."""
  return entry.dist.name if entry.dist else "unknown"


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
  """Read once for each search path: that takes milliseconds, and names are asked for often."""
  del path
  return tuple(metadata.entry_points(group=group))


def _first_line(error: Exception) -> str:
  return next(iter(str(error).splitlines()), "")
