"""Answer a request to delete pictures: from ids, lists or pictures to a folder with a letter.

    jaxunlearn answer --run=runs/siss_mnist --ids=tshirt/00000 --out=answer
    jaxunlearn answer --run=runs/mine --pictures=sent/me.jpg --confirm=cat/0012.png --out=answer
    jaxunlearn answer --run=runs/cdm --ids=mnist/00006 --out=answer --execute --prove

It says what the run did already about those records. Where the run still has them it says the plan
and its cost, and --execute carries it out: a new run beside it, or a deletion from a run of
compartments. The folder has a letter for the person, what speaks for and against, every copy that
is known of, and a technical annex. --purge deletes older checkpoints, cached latents and grids that
show the record. A picture that is like records, and is none of them, is listed and not taken:
--confirm says which. docs/answer.md. The module is `python -m jaxunlearn.answer`.

Exit codes: 0 done, 2 bad input, 3 diverged; 1 where a proof fails.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxunlearn.answer import compartments, copies, find, folder, one_model, plan
from jaxunlearn.answer.case import Asked, Case
from jaxunlearn.commands import guard


def command(args: argparse.Namespace) -> None:
  asked = asked_for(args)
  folder.prepare(asked.out)
  made = open_case(asked)
  folder.write(made, asked.out)
  print(said(made, asked))


def open_case(asked: Asked) -> Case:
  """The case of any run; raises ValueError for what is none, or holds no diffusion model."""
  config = copies.config_of(asked.run)
  if "autoencoder" in config:
    raise ValueError(f"{asked.run} is an autoencoder; give a run of a diffusion model made with it")
  if "sources" in config:
    return compartments.open_case(asked)
  return one_model.open_case(asked, config)


def said(made: Case, asked: Asked) -> str:
  """What the terminal says at the end."""
  count = len(made.found)
  what = "deleted" if made.deleted else "not deleted yet"
  lines = [f"{count} record{'s' * (count != 1)}; {what}"]
  lines += made.plan.lines if not made.deleted else ()
  lines += [made.plan.anew] if made.plan.anew and not made.deleted else []
  if not made.deleted:
    lines.append("To carry it out, give the same command with --execute")
  by_hand = sum(one.how == copies.BY_HAND for one in made.copies)
  lines.append(f"other copies known of: {len(made.copies)}, by hand: {by_hand} (copies.csv)")
  return "\n".join([*lines, f"letter: {asked.out / 'letter.md'}"])


def asked_for(args: argparse.Namespace) -> Asked:
  """Raises ValueError for flags that do not go together."""
  given = vars(args).copy()
  words = {name: _listed(given.pop(name)) for name in ("ids", "files", "pictures", "confirm")}
  if given["receipt"]:
    if any(words.values()):
      raise ValueError("--receipt names the record; leave --ids, --files and --pictures out")
    return Asked(request=None, **given)
  paths = {name: tuple(map(pathlib.Path, words[name])) for name in ("files", "pictures")}
  request = find.Request(words["ids"], paths["files"], paths["pictures"], words["confirm"])
  return Asked(request=request, **given)


def _listed(text: str) -> tuple[str, ...]:
  return tuple(filter(None, text.split(",")))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn answer", description=(__doc__ or "").split("\n")[0]
  )
  add, path = parser.add_argument, pathlib.Path
  add("--run", type=path, required=True, help="the working directory of the run")
  add("--out", type=path, required=True, help="the folder of the answer, outside of the run")
  add("--ids", default="", help="record ids, or sha256:HEX, between commas")
  add("--files", default="", help="text files with one of them a line, between commas")
  add("--pictures", default="", help="picture files, between commas")
  add("--confirm", default="", help="ids of records that a picture was likened to")
  add("--receipt", type=path, help="what a deletion wrote, in place of an id that is forgotten")
  add("--execute", action="store_true", help="delete what the run still has")
  add("--prove", action="store_true", help="with --execute: compare with shards trained anew")
  add("--purge", action="store_true", help="delete copies that can be made again or are old")
  add("--runs", type=path, help="where other runs and exports are looked for; beside the run")
  add("--workdir", type=path, help="of the new run; RUN_answer")
  add("--steps", type=int, default=plan.STEPS, help="of a run that deleted nothing yet")
  add("--learning_rate", type=float, default=plan.LEARNING_RATE, help="of such a run")
  add("--head", default="", help="the head of the ledger that was kept: it finds a cut")
  return parser.parse_args(argv)


def start() -> int:
  args = parse()
  return guard.guarded(lambda: command(args), args.run)


if __name__ == "__main__":
  sys.exit(start())
