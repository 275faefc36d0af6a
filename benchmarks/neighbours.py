"""What a deletion does to what stands near it: other prompts of the little Stable Diffusion.

  python -m benchmarks.neighbours --runs=runs/table_little_sd --out=results  (45 minutes)

For each run of configs/table_little_sd.py of the first seed that is named in METHODS, pictures of
other prompts are drawn before and after it from the same noise: those of the same subgroup (whales:
marine animals), of the same style, that have a word in common with the deleted picture's name or
with its prompts, and 200 unrelated ones: of other groups, in both styles. `change` is the L2
between before and after over the L2 between two pictures of one prompt before: 0 means untouched, 1
that nothing but the prompt is left in common. `typical` is evals/typical.py's share.

Pictures are kept beside the runs: a launch that was stopped goes on, and the same command may be
launched twice at once, on a core each; the launch that ends last writes the page.
"""

import argparse
import io
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import pages
from configs import table_little_sd
from jaxunlearn import pipeline
from jaxunlearn.commands import sample
from jaxunlearn.data import emoji, emoji_captions
from jaxunlearn.evals import statistics, typical
from jaxunlearn.memorisation import prompt_list
from jaxunlearn.reports import writer

ROOT = pathlib.Path(__file__).parents[1]
MODEL = "assets:little_sd"
COUNTS = {"same subgroup": 12, "same style": 12, "a word in common": 12, "unrelated": 200}
STEPS, GUIDANCE = 20, 3.0
METHODS = {label: how[0] for label, how in table_little_sd.METHODS.items()}


def prompts_near(target: str, words: str, seed: int = 0) -> dict[str, list[str]]:
  """Prompts by how they stand to the picture `target` (like noto/whale) that `words` showed."""
  records = emoji.everything("emoji64.npz")
  named, shared, grouped = emoji_captions.captions(records)
  ids = records.ids.tolist()
  mine = ids.index(target)
  style = np.array([name.split("/")[0] for name in ids])
  own = _words(f"{words} {target.split('/')[1]}")
  common = np.array([bool(own & _words(name.split("/")[1])) for name in ids])
  same = np.array(shared) == shared[mine]
  group, same_style = np.array(grouped) == grouped[mine], style == style[mine]
  kinds = {
    "same subgroup": same & ~common,
    "same style": same_style & ~group & ~common,
    "a word in common": common,
    "unrelated": ~group & ~common,
  }
  rng, there = np.random.default_rng(seed), np.arange(len(ids)) != mine
  found = {}
  for kind, rows in kinds.items():
    rows = np.flatnonzero(rows & there)
    found[kind] = [named[i] for i in rng.permutation(rows)[: COUNTS[kind]]]
  return found


def _words(text: str) -> set[str]:
  return {word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3}


def drawn(origin: str, prompts: Sequence[str], seed: int) -> np.ndarray:
  """One picture of each prompt, [N, H, W, C]; the noise depends on the seed alone."""
  asked = sample.Asked(
    origin, prompts, n=1, batch=16, steps=STEPS, sampler="ddim", guidance=GUIDANCE, seed=seed
  )
  return np.asarray(sample.draw(sample.find(asked), asked))


def kept(path: pathlib.Path, make: Callable[[], np.ndarray]) -> np.ndarray | None:
  """The array in the file, which is made where it is not there; None: another launch is at it."""
  with pipeline.only_here(path.with_suffix(".lock")) as mine:
    if not mine:
      return None
    if not path.exists():
      content = io.BytesIO()
      np.save(content, make())
      writer.replace(path, content.getvalue())
  return np.load(path)


def measured(
  before: np.ndarray, again: np.ndarray, after: np.ndarray, kinds: np.ndarray
) -> list[dict[str, Any]]:
  """A row for each kind of prompt, of pictures before, before from other noise, and after."""
  length = lambda a: np.linalg.norm(a.reshape(len(a), -1), axis=1)
  scale = length(again - before).mean()
  change = length(after - before) / scale
  now, was = (typical.are("little_styles", images) for images in (after, before))
  return [
    {
      "prompts": kind,
      "n": int(mask.sum()),
      "change": float(change[mask].mean()),
      "change_ci95": statistics.mean_interval(change[mask]),
      "typical": float(now[mask].mean()),
      "typical_before": float(was[mask].mean()),
    }
    for kind in COUNTS
    if (mask := kinds == kind).any()
  ]


class Deletion(NamedTuple):
  """A run that deleted a picture, and the prompts near it by kind."""

  run: pathlib.Path
  target: str
  near: Mapping[str, Sequence[str]]

  @property
  def kinds(self) -> list[str]:
    return [kind for kind, own in self.near.items() for _ in own]

  def pictures(self, model: str) -> tuple[np.ndarray | None, ...]:
    """Before, before from other noise, and after; None for what another launch is drawing."""
    texts = [text for own in self.near.values() for text in own]
    before = self.run.parent / self.target.replace("/", "_")
    return (
      kept(before.with_suffix(".0.npy"), lambda: drawn(model, texts, 0)),
      kept(before.with_suffix(".1.npy"), lambda: drawn(model, texts, 1)),
      kept(self.run / "neighbours.npy", lambda: drawn(str(self.run), texts, 0)),
    )


def runs(folder: pathlib.Path, seed: int) -> dict[str, list[Deletion]]:
  """label -> the deletions of the memorised prompts by that method that are there."""
  listed = prompt_list.read(ROOT / "jaxunlearn/assets/little_sd/memorised.txt")
  target = {text: name for name, text in emoji_captions.MEMORISED}
  found: dict[str, list[Deletion]] = {}
  for label, method in METHODS.items():
    for entry in listed:
      run, name = folder / f"{method}_{entry.name}_seed{seed}", target[entry.prompt]
      if (run / "checkpoints").is_dir():
        near = prompts_near(name, entry.prompt)
        found.setdefault(label, []).append(Deletion(run, name, near))
  return found


def table(of: Mapping[str, Sequence[Deletion]], model: str) -> list[dict[str, Any]]:
  """The rows of every method, over all its runs; none while another launch draws some of it."""
  for members in of.values():
    for deletion in members:
      deletion.pictures(model)
  rows: list[dict[str, Any]] = []
  for label, members in of.items():
    parts = [deletion.pictures(model) for deletion in members]
    if any(part is None for one in parts for part in one):
      return []
    pictures = [np.concatenate(one) for one in zip(*parts, strict=True)]
    kinds = np.array([kind for deletion in members for kind in deletion.kinds])
    for row in measured(*pictures, kinds):
      rows.append({"method": label, "pictures deleted": len(members), **row})
  return rows


def markdown(rows: Sequence[Mapping[str, Any]], command: str) -> str:
  lines = ["# What deletions do to other prompts of the little Stable Diffusion", ""]
  lines += [f"`{command}`; changes with 95% intervals over prompts.", ""]
  lines += ["| method | pictures deleted | prompts | pictures | change | typical, before | after |"]
  lines += ["|---|---|---|---|---|---|---|"]
  for row in rows:
    low, high = row["change_ci95"] or (float("nan"),) * 2
    change = f"{row['change']:.3f} ({low:.3f} to {high:.3f})"
    shares = f"{row['typical_before']:.2f} | {row['typical']:.2f}"
    start = f"| {row['method']} | {row['pictures deleted']} | {row['prompts']} | {row['n']} | "
    lines.append(f"{start}{change} | {shares} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--runs", type=pathlib.Path, required=True, help="of table_little_sd.py")
  parser.add_argument("--out", type=pathlib.Path, help="write neighbours_little_sd.{md,json} there")
  parser.add_argument("--seed", type=int, default=table_little_sd.SEEDS[0], help="of the runs")
  args = parser.parse_args()
  if not (found := runs(args.runs, args.seed)):
    parser.error(f"{args.runs} has no finished run of seed {args.seed}; make the table first")
  command = f"python -m benchmarks.neighbours --runs={args.runs} --out=results"
  if not (rows := table(found, MODEL)):
    print("another launch is still drawing; that one writes the page")
    return
  page = markdown(rows, command)
  pages.write(args.out, "neighbours_little_sd", {"command": command, "rows": rows}, page)
  print(page)


if __name__ == "__main__":
  main()
