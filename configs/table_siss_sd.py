"""The table of section 5.3 of Alberti et al. (2025): every method on a list of memorised prompts.

    python -m jaxunlearn.main --config=configs/table_siss_sd.py:memorised --workdir=runs/table_sd

The folder behind the colon is what `python -m jaxunlearn.memorised` wrote: each prompt in it whose
split can be used is a run of siss_sd.py for each method. `:FOLDER,attn2` trains the attention to
text alone, `:FOLDER,lora` LoRA of rank 4 on it. Writes results/siss_sd.{md,json}: the share of
prompts at which a deletion succeeded, with Wilson's interval. The paper's are of 45 prompts. SISS
with λ = 0 is left out, as there: pictures lie so far apart in latents that it has no forget part.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from configs import siss_sd
from jaxunlearn import errors

TRAINED = {"all": {}, "attn2": {"pattern": "attn2"}, "lora": {"pattern": "attn2", "rank": 4}}
# label -> (variant of siss_mnist.METHODS, the paper's success by both prompts, CLIP-IQA at the end)
METHODS = {
  "naive deletion": ("naive", ("56%", "34%", ".721")),
  "SISS λ=0.5": ("siss", ("87%", "71%", ".744")),
  "SISS (No IS)": ("siss_no_is", ("87%", "69%", ".727")),
  "ReTrack": ("retrack", ("-", "-", "-")),
  "EraseDiff": ("erasediff", ("49%", "24%", ".571")),
  "Concept Ablation": ("concept_ablation", ("-", "-", "-")),
  "SISS λ=1": ("siss_lam1", ("-", "-", ".294")),
  "NegGrad": ("neggrad", ("-", "-", ".295")),
}
PRETRAINED = ("-", "-", ".811")
PUBLISHED = ("success", "success, original prompt", "CLIP-IQA")
COLUMNS = (
  ("success", "success"),
  ("success_original", "success, original prompt"),
  ("gone", "none of 16"),
  ("gone_original", "none of 16, original prompt"),
  ("memorised_kmeans_rate", "share memorised"),
  ("memorised_kmeans_original_rate", "share, original prompt"),
  ("sscd_mean", "SSCD"),
  ("clip_iqa", "CLIP-IQA"),
  ("clip_score", "CLIP score"),
  ("text_noise", "text noise"),
  ("one_step", "one-step score"),
)


def get_config(variant: str = "memorised"):
  folder, _, trained = variant.partition(",")
  errors.check_choice("part to train", trained or "all", TRAINED)

  def run(method: str, name: str) -> ConfigDict:
    config = siss_sd.deletion(f"{folder}/{name}", method)
    config.trained.update(TRAINED[trained or "all"])
    return config

  prompts = names(pathlib.Path(folder))
  config = table(run, prompts, (42,), "results/siss_sd", COLUMNS, METHODS)
  config.success = {"rate": "memorised_kmeans", "quality": "clip_iqa", "least": 0.35}
  return config


def names(folder: pathlib.Path) -> list[str]:
  """The data sets in the folder that a deletion can use; raises ValueError where there is none."""
  path = folder / "summary.json"
  if not path.is_file():
    raise ValueError(
      f"{path} is not there; python -m jaxunlearn.memorised --out={folder} writes it"
    )
  found = [name for name, one in json.loads(path.read_text()).items() if one["usable"]]
  if not found:
    raise ValueError(f"{path} has no prompt whose pictures fall in two; see its doubts")
  return found


def table(
  run: Callable[[str, str], ConfigDict],
  prompts: Sequence[str],
  seeds: Sequence[int],
  out: str,
  columns: Sequence[tuple[str, str]],
  methods: Mapping[str, tuple[str, tuple[str, ...]]],
) -> ConfigDict:
  """run(method, prompt) of every method, prompt and seed; and the model as it was, unchanged."""
  config = ConfigDict({"runs": {}, "rows": (), "columns": tuple(columns), "out": out})
  config.published = PUBLISHED
  for label, (method, published) in {"pretrained": ("", PRETRAINED), **methods}.items():
    members = ()
    for prompt in prompts:
      for seed in seeds:
        one = run(method or "naive", prompt)
        one.seed = one.eval.seed = seed
        one.eval.before = False
        if not method:
          one.train.steps = 0
        members += (f"{method or 'pretrained'}_{prompt}_seed{seed}",)
        config.runs[members[-1]] = one
    config.rows += ((label, members, published),)
  return config
