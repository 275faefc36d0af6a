"""Does the little Stable Diffusion draw what a prompt asks for? By group and style, by classifiers.

  python -m benchmarks.little_sd_quality --out=results     (some minutes on 2 cores)

Pictures are drawn of the captions of training pictures, by name and style, as many of each group of
emoji in each style. `shown` is the share that the embedded classifiers take for what was asked for;
beside it stands the same of real pictures that the classifier was not trained on.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import pages
from jaxunlearn import data
from jaxunlearn.commands import sample
from jaxunlearn.data import emoji, emoji_captions
from jaxunlearn.evals import classifiers, statistics

MODEL, EACH, STEPS, GUIDANCE = "assets:little_sd", 12, 20, 3.0
JUDGES = {"group": "emoji", "style": "decoded_noto_twemoji"}


def asked(each: int, seed: int = 0) -> tuple[list[str], dict[str, list[str]]]:
  """`each` prompts of every group and style, of training pictures; and both of each prompt."""
  records = emoji.everything("emoji64.npz")
  named, *_ = emoji_captions.captions(records)
  trained = set(emoji_captions.Source(copies=0).load()[0].ids.tolist())
  group = np.array([records.classes[value] for value in records.label.tolist()])
  style = np.array([name.split("/")[0] for name in records.ids.tolist()])
  there = np.array([name in trained for name in records.ids.tolist()])
  rng, rows = np.random.default_rng(seed), []
  for wanted in dict.fromkeys(zip(group.tolist(), style.tolist(), strict=True)):
    mine = np.flatnonzero(there & (group == wanted[0]) & (style == wanted[1]))
    rows += rng.permutation(mine)[:each].tolist()
  return [named[i] for i in rows], {"group": group[rows].tolist(), "style": style[rows].tolist()}


def real(kind: str) -> tuple[np.ndarray, list[str]]:
  """Held-out pictures of the judge of a kind, and what they are."""
  records = classifiers.RECIPES[JUDGES[kind]].records()[1]
  images = data.to_model(records.image[np.arange(len(records))])
  return images, [records.classes[value] for value in records.label.tolist()]


def rows_of(kind: str, images: np.ndarray, said: Sequence[str]) -> list[dict[str, Any]]:
  """A row for each group, or each style, that was asked for; and one of all together."""
  judge = classifiers.load(JUDGES[kind])
  right = judge.agrees(images, list(said))
  theirs, are = real(kind)
  know = judge.agrees(theirs, are)
  rows = []
  for name in [*dict.fromkeys(said), "all"]:
    mine = np.array([name in (one, "all") for one in said])
    other = np.array([one in ((name,) if name != "all" else said) for one in are])
    hits, n = int(right[mine].sum()), int(mine.sum())
    row = {"kind": kind, "name": name, "n": n, "shown": hits / n}
    row["ci95"] = statistics.wilson(hits, n)
    rows.append(row | {"n_real": int(other.sum()), "real": float(know[other].mean())})
  return rows


def markdown(rows: Sequence[Mapping[str, Any]], command: str) -> str:
  lines = ["# What the little Stable Diffusion draws, as classifiers see it", ""]
  lines += [f"`{command}`; {STEPS} steps of DDIM, guidance w = {GUIDANCE:g}, 95% intervals.", ""]
  lines += ["| | asked for | pictures | shown | real pictures | recognised |", "|---" * 6 + "|"]
  for row in rows:
    low, high = row["ci95"]
    shown = f"{row['shown']:.0%} ({low:.0%} to {high:.0%})"
    start = f"| {row['kind']} | {row['name']} | {row['n']} | {shown} | "
    lines.append(f"{start}{row['n_real']} | {row['real']:.0%} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="write little_sd_quality.{md,json} there")
  parser.add_argument("--each", type=int, default=EACH, help="pictures of each group and style")
  args = parser.parse_args()
  texts, said = asked(args.each)
  request = sample.Asked(
    MODEL, texts, n=1, batch=16, steps=STEPS, sampler="ddim", guidance=GUIDANCE
  )
  images = np.asarray(sample.draw(sample.find(request), request))
  rows = [row for kind in JUDGES for row in rows_of(kind, images, said[kind])]
  command = "python -m benchmarks.little_sd_quality --out=results"
  page = markdown(rows, command)
  pages.write(args.out, "little_sd_quality", {"command": command, "rows": rows}, page)
  print(page)


if __name__ == "__main__":
  main()
