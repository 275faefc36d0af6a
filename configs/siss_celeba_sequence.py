"""Delete 50 faces from google/ddpm-celebahq-256, one after the other (Alberti et al., 2025, 5.1).

    python -m jaxunlearn.main --config=configs/siss_celeba_sequence.py --workdir=runs/celeba_50

Each face is a run of `siss_celeba` that starts from the one before it; the faces deleted before
are in no stream any more. `:FILE` takes the ids from a file, one a line; without it they are
10000.jpg and the 49 that follow. SSCD after every face, FID and NLL after the last one too.
Expected: a final FID of 20.3. Writes results/celeba_sequence.{md,json}.
"""

import pathlib

from ml_collections import ConfigDict

from configs import siss_celeba

FACES = tuple(f"{10000 + i}.jpg" for i in range(50))
COLUMNS = (("sscd", "SSCD"), ("fid", "FID"), ("nll_bpd", "NLL (bits/dim)"))


def get_config(file: str = ""):
  faces = tuple(pathlib.Path(file).read_text().split()) if file else FACES
  config = ConfigDict({"runs": {}, "rows": (), "columns": COLUMNS, "published": ()})
  config.out = "results/celeba_sequence"
  for i, face in enumerate(faces):
    run = siss_celeba.get_config()
    run.forget.update(ids=(face,), earlier=faces[:i])
    run.seed = i
    run.eval.before = False
    if i:
      run.init_from = f"run:{_name(i - 1)}"
    if i + 1 < len(faces):
      run.eval.metrics, run.eval.samples = ("sscd",), 64
    config.runs[_name(i)] = run
    config.rows += ((f"{i + 1}: {face}", (_name(i),), ()),)
  return config


def _name(i: int) -> str:
  return f"face_{i + 1:02d}"
