"""Find what a text-to-image model has memorised, and write it as data that a deletion reads.

    jaxunlearn memorised --from=FOLDER --prompts=FILE --out=FOLDER --n=128

Of each prompt n pictures are drawn, with the scores of Wen et al. (2024) and Webster (2023). They
are split in two, the memorised one and the others, and written as what configs/siss_sd.py reads;
look at sheet.png. A doubtful split is told. Put it right by hand in kmeans_labels.json, and launch
again with --by=labels. --vary=12 tries as many variants of a prompt, and takes the one whose share
is nearest to a half. A stopped launch goes on. The module is `python -m jaxunlearn.memorised`.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxunlearn.commands import guard, sample
from jaxunlearn.evals import sscd
from jaxunlearn.inputs import ranges
from jaxunlearn.memorisation import drawing, finding, prompt_list, split
from jaxunlearn.memorisation.finding import Finder, Way
from jaxunlearn.memorisation.prompt_list import Entry
from jaxunlearn.mesh import cores, sharding
from jaxunlearn.reports import writer

SUMMARY = "summary"
WORD: dict[str, Any] = {"metavar": "X"}
FILES = (
  ("prompts", "a file: a prompt a line; behind a tab, a modified one"),
  ("out", "a folder in it for each prompt"),
)
FLAGS = (
  ("n", int, 128, "pictures of each prompt"),
  ("steps", int, 50, "of DDIM"),
  ("scale", float, 7.5, "s in eps_null + s (eps_c - eps_null)"),
  ("seed", int, 0, "of the noise"),
  ("batch", int, 8, "pictures at a time"),
  ("lora", str, "", "a LoRA of its UNet, .safetensors by PEFT's names"),
  ("by", str, "kmeans", f"one of {', '.join(split.WAYS)}"),
  ("references", str, "", "the memorised pictures: a folder of NAME.png, or a file"),
  ("radius", float, 0.0, "L2 in [0, 1] pixels; 0: .113 sqrt(values)"),
  ("sscd", float, 0.5, "the least cosine of descriptors"),
  ("sscd_weights", str, "", "SSCD's file, where it is not in the cache"),
  ("vary", int, 0, "variants of each prompt that are tried"),
  ("few", int, 16, "pictures of each variant"),
)
COLUMNS = ("prompt", "asked", "share", "text noise", "first step", "one step", "doubts")


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is to be found: see the flags."""

  origin: str
  prompts: pathlib.Path
  out: pathlib.Path
  n: ranges.Count = 128
  how: drawing.How = dataclasses.field(default_factory=drawing.How)
  way: Way = dataclasses.field(default_factory=Way)
  lora: str = ""
  references: str = ""
  sscd_weights: str = ""

  def __post_init__(self) -> None:
    ranges.check(self)
    if self.n < 2:
      raise ValueError(f"--n is {self.n}; use 2 or more, to be split in two")


def find(asked: Asked) -> str:
  """Every prompt of the list in turn; returns what it did.

  Raises:
    ValueError: a bad list, model or reference; or no prompt has a split that can be used.
  """
  entries = prompt_list.read(asked.prompts)
  references = read_references(asked.references, entries)
  describe = sscd.describer(asked.sscd_weights) if asked.way.by == "sscd" else None
  texts = list(dict.fromkeys(t for e in entries for t in finding.texts_of(e, asked.way.vary)))
  model = _model(asked, texts)
  rows = {text: i for i, text in enumerate(texts)}
  total = sum(finding.pictures_of(e, asked.out / e.name, asked.n, asked.way) for e in entries)
  reports = []
  with tqdm(total=total, desc="pictures", disable=not total) as bar:
    finder = Finder(model, rows, asked.n, asked.how, asked.way, describe, bar.update)
    for entry in entries:
      reports.append(finder.find(entry, asked.out / entry.name, references.get(entry.name)))
      _write_summary(asked.out, entries, reports)
  return told(asked, reports)


def told(asked: Asked, reports: Sequence[Mapping[str, Any]]) -> str:
  """The end of a launch in some lines; raises ValueError where no split can be used."""
  lines = [f"{report['prompt']!r}: {doubt}" for report in reports for doubt in report["doubts"]]
  usable = sum(report["usable"] for report in reports)
  if not usable:
    raise ValueError(
      f"{lines[0]}; a deletion needs some that are and some that are not: try --vary=12, a "
      f"modified prompt, or another --radius, and look at sheet.png in {asked.out}"
    )
  doubtful = [f"doubtful: {line}" for line in lines]
  return "\n".join([*doubtful, f"wrote {usable} of {len(reports)} data sets to {asked.out}"])


def read_references(given: str, entries: Sequence[Entry]) -> dict[str, np.ndarray]:
  """Name of a prompt -> the picture that it has memorised: a file for one, or a folder of NAME.png.

  Raises:
    ValueError: no such file, or none of any prompt.
  """
  path = pathlib.Path(given).expanduser()
  if not given:
    return {}
  if path.is_file() and len(entries) == 1:
    return {entries[0].name: _picture(path)}
  found = {e.name: path / f"{e.name}.png" for e in entries if (path / f"{e.name}.png").is_file()}
  if not found:
    raise ValueError(
      f"--references is {given!r}, where {entries[0].name}.png is not; give a folder of such "
      "files, or for one prompt a picture"
    )
  return {name: _picture(file) for name, file in found.items()}


def _picture(path: pathlib.Path) -> np.ndarray:
  try:
    return np.asarray(Image.open(path).convert("RGB"))
  except OSError as error:
    raise ValueError(f"{path} cannot be read as a picture ({error}); give a .png") from error


def _model(asked: Asked, texts: Sequence[str]) -> drawing.Model:
  subject = sample.find(sample.Asked(asked.origin, tuple(texts), lora=asked.lora))
  return drawing.Model(
    subject.eps_fn,
    subject.process,
    subject.options,
    subject.shape,
    subject.decode,
    drawing.identity(asked.origin + asked.lora, _network(subject.eps_fn)),
  )


def _network(eps_fn: Any) -> Any:
  """The parameters of the UNet in a bound predictor; the states of prompts are none of them."""
  return sharding.unspread(eps_fn).args[0]["unet"]


def _write_summary(
  out: pathlib.Path, entries: Sequence[Entry], reports: Sequence[Mapping[str, Any]]
) -> None:
  """summary.json, name -> report, and the same as a table in summary.md."""
  named = {entry.name: report for entry, report in zip(entries, reports, strict=False)}
  writer.replace(out / f"{SUMMARY}.json", json.dumps(named, indent=1) + "\n")
  lines = [_row(COLUMNS), _row(["---"] * len(COLUMNS)), *map(_line, reports)]
  writer.replace(out / f"{SUMMARY}.md", "\n".join(lines) + "\n")


def _line(report: Mapping[str, Any]) -> str:
  low, high = report["ci95"]
  share = f"{report['share']:.0%} ({low:.0%} to {high:.0%})"
  scores = [f"{report[name]['value']:.3g}" for name in drawing.SHOWN]
  asked = "the same" if report["asked"] == report["prompt"] else report["asked"]
  return _row([report["prompt"], asked, share, *scores, "; ".join(report["doubts"]) or "none"])


def _row(cells: Sequence[str]) -> str:
  return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    prog="jaxunlearn memorised", description=__doc__, formatter_class=described
  )
  parser.add_argument("--from", **WORD, dest="origin", required=True, help="a model, as for sample")
  for name, kind, default, says in FLAGS:
    parser.add_argument(f"--{name}", **WORD, type=kind, default=default, help=says)
  for name, says in FILES:
    parser.add_argument(f"--{name}", **WORD, type=pathlib.Path, required=True, help=says)
  return parser.parse_args(argv)


def asked_of(flags: argparse.Namespace) -> Asked:
  """What the flags say; raises ValueError for a value out of its range."""
  given = vars(flags).copy()
  take = lambda kind: kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind)})
  return Asked(how=take(drawing.How), way=take(Way), **given)


def start() -> int:
  flags = parse()
  cores.as_devices(flags.batch)
  return guard.guarded(lambda: print(find(asked_of(flags))))
