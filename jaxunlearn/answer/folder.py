"""The folder that answers a request: a letter, what the owner keeps, and a technical annex.

Each file is made from one case; no sentence says more than its evidence. The folder names the
record, so that it is a copy too: its owner alone can read it.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from jaxunlearn.answer import copies
from jaxunlearn.answer.case import RECEIPT, Case
from jaxunlearn.answer.copies import Copy
from jaxunlearn.answer.find import BY_COPY
from jaxunlearn.reports import evidence, model_card, writer

TEMPLATES = pathlib.Path(__file__).parent / "templates"
ANNEX = "annex.json"
PAGES = ("README.md", "letter.md", "procedure.md", "decision.md", "guide.md", "evidence.md")
TABLES = ("copies.csv", "traces.csv")
NAMED = 5  # records that the letter names
# The seven problems of the EDPB's report, in short, and the file that answers each.
PROBLEMS = (
  ("No internal procedure, or one that is out of date", "procedure.md"),
  ("Staff without training", "guide.md"),
  ("Too little information for the person", "letter.md"),
  ("Exceptions used wrongly, or not understood", "decision.md"),
  ("Retention periods not defined, or not kept", "copies.csv"),
  ("Backups forgotten", "copies.csv"),
  ("Hashing or masking taken for deletion", "traces.csv"),
)


def prepare(out: pathlib.Path) -> None:
  """Makes the folder, for its owner alone; raises ValueError for one that holds something else."""
  try:
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"--out {out} cannot be made ({error}); use another folder") from error
  own = {ANNEX, RECEIPT, "candidates.csv", "candidates.png", *PAGES, *TABLES}
  others = sorted(path.name for path in out.iterdir() if path.name not in own)
  if others:
    raise ValueError(f"--out {out} holds other files ({others[0]!r}); use a new folder")


def write(case: Case, out: pathlib.Path) -> None:
  """Writes every file of the folder."""
  values = _values(case, out)
  for name in PAGES:
    writer.replace(out / name, _environment().get_template(f"{name}.j2").render(**values))
  fields = [field.name for field in dataclasses.fields(Copy)]
  rows = [dataclasses.astuple(one) for one in case.copies]
  writer.replace(out / "copies.csv", _table(fields, rows))
  advice = "it names the record; edit or remove it by hand, where the run is to forget the name"
  writer.replace(out / "traces.csv", _table(["file", "todo"], [(t, advice) for t in case.traces]))
  text = json.dumps(case.as_data(), indent=2, allow_nan=False) + "\n"
  writer.replace(out / ANNEX, text)


def _values(case: Case, out: pathlib.Path) -> Mapping[str, Any]:
  how = lambda *kinds: [one for one in case.copies if one.how in kinds]
  named = [one for one in case.found if one.by != BY_COPY]
  return {
    "case": case,
    "named": named[:NAMED],
    "more": len(named[NAMED:]),
    "twins": len(case.found) - len(named),
    "cards": evidence.cards(case.evidence),
    "purged": how(copies.PURGED),
    "left": how(copies.BY_HAND, copies.PURGE),
    "exports": [one for one in case.copies if one.what == "export"],
    "problems": PROBLEMS,
    "receipt": RECEIPT if (out / RECEIPT).exists() else "",
    "day": case.started[:10],
  }


def _environment() -> jinja2.Environment:
  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  env.filters |= {"code": model_card.code, "plain": model_card.plain}
  return env


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(head)
  table.writerows(rows)
  return text.getvalue()
