"""Delete 50 faces from google/ddpm-celebahq-256, one after the other (Alberti et al., 2025, 5.1).

    python -m jaxunlearn.main --config=configs/siss_celeba_sequence.py --workdir=runs/celeba_50

Each face is a run of `siss_celeba` that starts from the one before it, in one of two FORMS:

authors    all 50 faces are out of the kept set from the first run on, and Adam goes on
restarted  later faces are still kept, deleted ones are in no stream any more, and each run has a
           new Adam: what a service does that cannot know which deletion comes next

`:FORM` takes a form, `:FORM,FILE` its ids from a file, one a line; without it they are 10000.jpg
and the 49 that follow. SSCD after every face, FID and NLL after the last one too. Expected: a final
FID of 20.3. Writes results/celeba_sequence_FORM.{md,json}.

Deviations: those of siss_celeba.py.
"""

import pathlib

from ml_collections import ConfigDict

from configs import siss_celeba
from jaxunlearn import errors

FORMS = ("authors", "restarted")
FACES = tuple(f"{10000 + i}.jpg" for i in range(50))
COLUMNS = (("sscd", "SSCD"), ("fid", "FID"), ("nll_bpd", "NLL (bits/dim)"))


def get_config(variant: str = "authors"):
  form, _, file = variant.partition(",")
  errors.check_choice("form of the sequence", form, FORMS)
  faces = tuple(pathlib.Path(file).read_text().split()) if file else FACES
  config = ConfigDict({"runs": {}, "rows": (), "columns": COLUMNS, "published": ()})
  config.out = f"results/celeba_sequence_{form}"
  for i, face in enumerate(faces):
    run = siss_celeba.get_config()
    run.forget.update(ids=(face,), earlier=faces[:i])
    if form == "authors":
      run.forget.later = faces[i + 1 :]
    run.init_optimizer = form == "authors" and i > 0
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
