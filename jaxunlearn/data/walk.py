"""Which files of a folder are pictures to read; what is not read is named by kind and count.

Not read are: hidden files and folders, the trash and thumbnails of file managers and other folders
of systems, and the working directories of this project's runs. The suffix says what is a picture.
Links to files are read; links to folders may run in circles, so they are named and not entered.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable

from absl import logging

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp")
CONVERT = (  # pictures that are not read
  *(".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".jxl", ".svg", ".psd"),
  *(".ico", ".tga", ".ppm", ".pgm", ".pnm", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
)
UNPACK = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".zst")
SYSTEM = (  # in lower case; those that begin with a dot are hidden
  *("__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found"),
  *("@eadir", "#recycle", "@recycle", "__pycache__"),
)
RUN = {"method", "streams", "data", "train"}  # fields of a run's config.json
WRITTEN = ("samples", "evals", "checkpoints", "profile", "shards", "router", "deletions")
NAMED = 3  # names in a line


@dataclasses.dataclass
class Found:
  """The files under a folder, as POSIX paths in it."""

  pictures: list[str] = dataclasses.field(default_factory=list)
  links: list[str] = dataclasses.field(default_factory=list)  # to folders
  hidden: dict[str, int] = dataclasses.field(default_factory=dict)  # folder -> pictures in it
  files: list[str] = dataclasses.field(default_factory=list)  # hidden pictures
  runs: dict[str, int] = dataclasses.field(default_factory=dict)  # folder -> pictures in it
  others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def find(root: pathlib.Path) -> list[str]:
  """The pictures under a folder, as sorted POSIX paths in it; warns of what is not read.

  Raises:
    ValueError: no such folder, one that cannot be listed, or no picture in it.
  """
  if not root.is_dir():
    raise ValueError(f"config.data.path {str(root)!r} is not a folder; give the folder of images")
  found = walk(root)
  if not found.pictures:
    others = f" ({kinds(found.others)})" if found.others else ""
    raise ValueError(f"no image in {root}{others}; it takes {', '.join(SUFFIXES)}")
  logging.info("%d images in %s", len(found.pictures), root)
  for line in unread(found):
    logging.warning("%s", line)
  if rest := kinds(found.others, without=(*CONVERT, *UNPACK)):
    logging.info("other files: %s", rest)
  return sorted(found.pictures)


def walk(root: pathlib.Path) -> Found:
  """What lies under a folder; raises ValueError for a folder that cannot be listed."""
  found = Found()
  for folder, below, files in os.walk(root, onerror=_cannot_list):
    place = pathlib.Path(folder)
    path = lambda name, place=place: (place / name).relative_to(root).as_posix()
    written = WRITTEN if is_run(place) else ()
    for name in sorted(below):
      if (place / name).is_symlink():
        found.links.append(path(name))
      elif name.startswith(".") or name.lower() in SYSTEM:
        found.hidden[path(name)] = _count(place / name)
      elif name in written or is_run(place / name):
        found.runs[path(name)] = _count(place / name)
      else:
        continue
      below.remove(name)
    for name in files:
      picture = name.lower().endswith(SUFFIXES)
      if name.startswith("."):
        found.files += [path(name)] * picture
      elif picture:
        found.pictures.append(path(name))
      else:
        found.others[pathlib.PurePath(name).suffix.lower() or "without suffix"] += 1
  return found


def unread(found: Found) -> list[str]:
  """A line for each kind of picture that is not read, with the way out."""
  lines = [
    f"{name!r} is a link to a folder and is not entered; give that folder itself"
    for name in sorted(found.links)
  ]
  for folders, what, advice in (
    (found.hidden, "hidden or system folders", "rename a folder that belongs to the data"),
    (found.runs, "working directories of runs", "use a --workdir outside config.data.path"),
  ):
    if count := sum(folders.values()):
      names = listed((f"{name!r} ({n})" for name, n in folders.items() if n), str)
      lines.append(f"{images(count)} in {what} {_are(count)} not read: {names}; {advice}")
  if count := len(found.files):
    names = listed(sorted(found.files))
    lines.append(f"{count} hidden {_plural(count)} {_are(count)} not read: {names}")
  for suffixes, advice in (
    (CONVERT, "convert them to PNG, for instance by: magick mogrify -format png FILES"),
    (UNPACK, "unpack them if they hold images"),
  ):
    here = collections.Counter({s: n for s, n in found.others.items() if s in suffixes})
    if here:
      lines.append(f"not read: {kinds(here)}; {advice}")
  return lines


def kinds(others: collections.Counter[str], without: Iterable[str] = ()) -> str:
  """`3 .heic, 1 .txt`: how many files of each suffix, the most first."""
  rows = [(kind, n) for kind, n in others.most_common() if kind not in without]
  text = ", ".join(f"{n} {ascii(kind)[1:-1]}" for kind, n in rows[: 2 * NAMED])
  return text + (f" and {len(rows) - 2 * NAMED} more kinds" if len(rows) > 2 * NAMED else "")


def listed(names: Iterable[str], show: Callable[[str], str] = repr) -> str:
  """The first names, quoted, and how many more there are."""
  names = list(names)
  more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
  return ", ".join(map(show, names[:NAMED])) + more


def images(count: int) -> str:
  return f"{count} {_plural(count)}"


def is_run(folder: pathlib.Path) -> bool:
  """Whether it is the working directory of a run: its config.json is one."""
  try:
    fields = json.loads((folder / "config.json").read_bytes())
  except (OSError, ValueError):
    return False
  return isinstance(fields, dict) and fields.keys() >= RUN


def _count(folder: pathlib.Path) -> int:
  """Pictures under a folder, as far as it can be listed."""
  names = (name for _, _, files in os.walk(folder) for name in files)
  return sum(name.lower().endswith(SUFFIXES) for name in names)


def _plural(count: int) -> str:
  return "image" if count == 1 else "images"


def _are(count: int) -> str:
  return "is" if count == 1 else "are"


def _cannot_list(error: OSError) -> None:
  raise ValueError(
    f"folder {error.filename!r} cannot be listed ({error.strerror}); make it readable"
  ) from error
