"""Makes the embedded data: digits, fashion, emoji, a tokenizer; THIRD_PARTY.md has the origins.

    python -m jaxunlearn.assets.make --mnist=mnist10k.npz --fashion=fashion10k.npz \\
        --emoji=emoji32.npz --emoji64=emoji64.npz --clip=clip_tokenizer

mnist10k.npz    `image` uint8 [10000, 28, 28] and `label` [10000]
fashion10k.npz  `image` and `label` likewise; `tshirt` uint8 [28, 28], image 1 of the training set
emoji32.npz     `image` uint8 [2, N, 32, 32, 3], `style` [2] and for each of the N pictures `name`,
                `codepoint`, `group` and `subgroup` (into `group_names`, `subgroup_names`)
emoji64.npz     likewise, of 64 px
clip_tokenizer  a folder with CLIP's vocab.json and merges.txt
"""

import argparse
import pathlib
from typing import Any

import numpy as np

from jaxunlearn.data import emoji_captions
from jaxunlearn.weights import tokenizer

FOLDER = pathlib.Path(__file__).parent
STYLES = {"google": "noto", "twitter": "twemoji"}  # by the packages that they come from
SKIN_TONES = tuple(f"1F3F{last}" for last in "BCDEF")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in ("mnist", "fashion", "emoji", "emoji64"):
    parser.add_argument(f"--{name}", required=True, type=np.load, help=f"the {name} npz")
  parser.add_argument("--clip", required=True, type=pathlib.Path, help="CLIP's tokenizer")
  args = parser.parse_args()
  _write(
    "digits.npz",
    image=args.mnist["image"].astype(np.uint8),
    label=args.mnist["label"].astype(np.uint8),
    tshirt=args.fashion["tshirt"].astype(np.uint8),
  )
  _write("fashion.npz", **{name: args.fashion[name] for name in ("image", "label")})
  _write("emoji.npz", **emoji(args.emoji))
  _write("emoji64.npz", **emoji(args.emoji64))
  captions = emoji_captions.Source().load()[0].classes
  tokenizer.load(args.clip).cut_to(captions, 32).save(FOLDER / "little_sd" / "tokenizer")


def emoji(npz: Any) -> dict[str, np.ndarray]:
  """Every picture but the variants of one by skin tone, which would be half of the set."""
  tones = [any(tone in code.upper() for tone in SKIN_TONES) for code in npz["codepoint"]]
  rows = np.flatnonzero(~np.array(tones))
  fields = {field: npz[field][rows] for field in ("group", "subgroup", "name")}
  names = {field: npz[field] for field in ("group_names", "subgroup_names")}
  style = np.array([STYLES.get(name, name) for name in npz["style"].tolist()])
  return {"image": npz["image"][:, rows], "style": style, **fields, **names}


def _write(file: str, **arrays: Any) -> None:
  np.savez_compressed(FOLDER / file, **arrays)
  print(f"wrote {FOLDER / file} ({(FOLDER / file).stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
  main()
