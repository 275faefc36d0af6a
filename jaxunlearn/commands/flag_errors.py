"""What is wrong with a command line or a config file, in one line."""

import keyword
import pathlib
import re
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jaxunlearn import errors

_NOT_READ = "Configuration is not available because of an earlier failure to load:"
_LONGEST = 400  # characters


def check_config(config: Any, path: str) -> None:
  """Raises flags.Error where a config file gives no config."""
  if config is None:
    gives = f"get_config of {path} returns nothing" if path else "--config is missing"
    raise flags.Error(f"{gives}; try --config=configs/siss_mnist.py")
  if not isinstance(config, ConfigDict):
    kind = type(config).__name__
    raise flags.Error(f"get_config of {path} returns {kind}; return an ml_collections.ConfigDict")


def said(error: BaseException, argv: Sequence[str]) -> str:
  """One line for whatever reading `argv`, and the config file it names, has raised."""
  path = config_path(argv)
  if strange := [name for name in overridden(argv) if not _is_name(name)]:
    text = f"no config field {strange[0]!r}{_nearest_field(strange[0])}; write --config.FIELD=VALUE"
  elif place := _place(error, path):
    text = _of_file(error, path, place)
  elif isinstance(error, KeyError | AttributeError):
    text = _no_field(str(error)) + "; configs/common.py has them all"
  else:
    text = _of_system(error, path) or _last_line(error) + "; see --help"
  return errors.one_line(text, _LONGEST)


def of_config_file(error: BaseException, argv: Sequence[str]) -> bool:
  """Whether the config file raised it."""
  return bool(_place(error, config_path(argv)))


def config_path(argv: Sequence[str]) -> str:
  """The file that --config names, without its variant; "" where there is none."""
  found = [arg.partition("=")[2] for arg in argv if re.match(r"--?config=", arg)]
  return found[-1].partition(":")[0] if found else ""


def overridden(argv: Sequence[str]) -> list[str]:
  """The fields that flags set: `train.steps` of --config.train.steps=3."""
  names = (re.match(r"--?config\.([^=]*)", arg) for arg in argv)
  return [name[1] for name in names if name]


def _is_name(path: str) -> bool:
  return all(part.isidentifier() and not keyword.iskeyword(part) for part in path.split("."))


def _nearest_field(path: str) -> str:
  from jaxunlearn import fields

  name = path.rpartition(".")[2]
  return errors.nearest(name.replace("-", "_"), fields.names())


def _place(error: BaseException, path: str) -> str:
  """The line of the config file that an error went through, "" for none."""
  if isinstance(error, SyntaxError) and error.filename:
    return str(error.lineno or 1) if path and error.filename.endswith(path) else ""
  frames = traceback.extract_tb(error.__traceback__)
  mine = [frame.lineno for frame in frames if path and frame.filename.endswith(path)]
  return str(mine[-1]) if mine else ""


def _of_file(error: BaseException, path: str, line: str) -> str:
  if isinstance(error, ValueError):
    return str(error)
  return f"{path}, line {line}: {type(error).__name__}: {error}; mend the config file"


def _of_system(error: BaseException, path: str) -> str:
  """Of a config file that is not there, or cannot be read."""
  text = str(error).removeprefix(_NOT_READ).strip()
  if "No such file" in text and path and path in text:
    near = errors.nearest(path, map(str, pathlib.Path(path).parent.glob("*.py")))
    return f"no config file {path!r}{near}; name a file of configs/, or your own"
  return text if str(error).startswith(_NOT_READ) else ""


def _last_line(error: BaseException) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return re.sub(r"^\w*(Error|Exception): ", "", lines[-1].strip())


def _no_field(message: str) -> str:
  """ml_collections' `'trian'\\nDid you mean "train" instead ...` in this project's words."""
  match = re.fullmatch(r"\W*(\w+?)\W*(?:n?Did you mean \"(\w+)\".*)?", message)
  if not match:
    return message
  field, near = match.groups()
  return f"no config field {field!r}" + (f" (did you mean {near!r}?)" if near else "")
