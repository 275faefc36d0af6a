"""Makes `digits.npz`, the embedded data: 10,000 MNIST digits and the T-shirt of Alberti et al.

    python -m jaxunlearn.assets.make --mnist=mnist10k.npz --fashion=fashion10k.npz

`mnist10k.npz` holds `image` uint8 [10000,28,28] and `label` [10000]; `fashion10k.npz` holds
`tshirt` uint8 [28,28], image 1 of Fashion-MNIST's training set. THIRD_PARTY.md has their origins.
"""

import argparse
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parent / "digits.npz"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--mnist", required=True, help="npz with image [N,28,28] and label [N]")
  parser.add_argument("--fashion", required=True, help="npz with tshirt [28,28]")
  args = parser.parse_args()
  mnist, fashion = np.load(args.mnist), np.load(args.fashion)
  np.savez_compressed(
    PATH,
    image=mnist["image"].astype(np.uint8),
    label=mnist["label"].astype(np.uint8),
    tshirt=fashion["tshirt"].astype(np.uint8),
  )
  print(f"wrote {PATH} ({PATH.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
  main()
