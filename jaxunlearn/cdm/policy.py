"""Who may use which source: a policy file, which is read before anything else is.

    alice: [uniform-0, uniform-3]      YAML, or the same in JSON
    bob: "*"                           every source there is

`policy.yaml` or `policy.json` in a run binds every use of it; a command may name another file.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jaxunlearn import errors

FILES = ("policy.yaml", "policy.json")
ALL = "*"


def find(folder: pathlib.Path, named: str = "") -> pathlib.Path | None:
  """The policy that binds: the one that is named, or the run's own; None where there is none."""
  if named:
    return pathlib.Path(named)
  return next((folder / name for name in FILES if (folder / name).is_file()), None)


def allowed(path: pathlib.Path | None, who: str, sources: Sequence[str] = ()) -> tuple[str, ...]:
  """The sources that `who` asks for and may use; () is all there are.

  Who asks for none by name gets all that the policy gives.

  Raises:
    ValueError: no such policy, nobody of that name in it, or a source that it does not give.
  """
  if path is None:
    if who:
      raise ValueError(f"--as is {who!r} and there is no policy; name one with --policy=FILE")
    return tuple(sources)
  if not who:
    raise ValueError(f"{path} says who may use which source; say who you are with --as=NAME")
  given = read(path)
  errors.check_choice(f"name in {path}", who, given)
  if given[who] == ALL:
    return tuple(sources)
  mine = tuple(given[who])
  if refused := [name for name in sources if name not in mine]:
    raise ValueError(
      f"{path} gives {who} {', '.join(mine)} and not {', '.join(refused)}; leave that out, or ask "
      "the owner of the policy"
    )
  return tuple(sources) or mine


def read(path: pathlib.Path) -> Mapping[str, Any]:
  """name -> ALL, or a list of sources; raises ValueError where the file says no such thing."""
  try:
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, yaml.YAMLError) as error:
    reason = str(error).splitlines()[0]
    raise ValueError(f"cannot read the policy {path} ({reason}); give YAML or JSON") from error
  if not isinstance(said, dict):
    raise ValueError(f"{path} is no policy; give lines like 'alice: [a, b]'")
  for who, names in said.items():
    listed = isinstance(names, list) and names and all(isinstance(n, str) for n in names)
    if not isinstance(who, str) or not (names == ALL or listed):
      raise ValueError(f"{path} gives {who!r} {names!r}; give a list of sources, or '{ALL}'")
  return said
