"""The third experiment of Alberti et al. (2025) in little: eight memorised pictures, three seeds.

    python -m jaxunlearn.memorised --from=assets:little_sd --scale=4 --steps=20 --batch=32 \\
        --prompts=jaxunlearn/assets/little_sd/memorised.txt --out=runs/memorised_little_sd
    python -m jaxunlearn.main --config=configs/table_little_sd.py --workdir=runs/table_little_sd

Each picture is deleted by a prompt that shows it now and then, and looked for by that prompt and by
its own, which shows it nearly always: the paper's modified and original prompts. Writes
results/siss_little_sd.{md,json}; the paper's numbers beside it are of Stable Diffusion. Relearning
starts from SISS's runs of the first seed: few-shot on the deleted picture, DiMRA on the kept ones.
Resumable; launch it twice at once, on a core each. `:runs/memorised_little_sd,1` has the first seed
alone, and a launch for all three goes on from there.
"""

import pathlib

from ml_collections import ConfigDict

from configs import common, siss_little_sd, table_siss_sd
from jaxunlearn import errors

SEEDS = (0, 1, 2)
COLUMNS = (
  ("success", "success"),
  ("success_original", "success, original prompt"),
  ("gone", "none of 16"),
  ("gone_original", "none of 16, original prompt"),
  ("memorised_kmeans_rate", "share memorised"),
  ("memorised_kmeans_original_rate", "share, original prompt"),
  ("typical_share", "typical share"),
  ("text_noise", "text noise"),
  ("text_noise_original", "text noise, original prompt"),
  ("one_step", "one-step score"),
)
METHODS = {**table_siss_sd.METHODS, "SISS λ=0": ("siss_lam0", ("-", "-", "-"))}
# label -> (attack, the stream that it learns from)
RELEARNED = {
  "SISS λ=0.5, then few-shot on the picture": ("few_shot", "forget"),
  "SISS λ=0.5, then DiMRA on the rest": ("dimra", "retain"),
}


def get_config(variant: str = "runs/memorised_little_sd"):
  """`variant` is the folder that the first command wrote, or that and how many seeds."""
  folder, _, count = variant.partition(",")
  run = lambda method, name: siss_little_sd.deletion(f"{folder}/{name}", method)
  counts = [str(1 + i) for i in range(len(SEEDS))]
  errors.check_choice("number of seeds", count or counts[-1], counts)
  names, seeds = table_siss_sd.names(pathlib.Path(folder)), SEEDS[: int(count or counts[-1])]
  out = "results/siss_little_sd"
  config = table_siss_sd.table(run, names, seeds, out, COLUMNS, METHODS)
  config.success = {"rate": "memorised_kmeans", "quality": "typical_share", "least": 0.35}
  for label, (attack, stream) in RELEARNED.items():
    members = ()
    for name in filter(_of_siss, list(config.runs)):
      config.runs[f"{name}@{attack}"] = relearned(config.runs[name], name, attack, stream)
      members += (f"{name}@{attack}",)
    config.rows += ((label, members, ("-",) * len(config.published)),)
  return config


def _of_siss(name: str) -> bool:
  """Whether it is SISS itself with the first seed: no variant of it, and no attack."""
  variant = name.startswith(("siss_lam", "siss_no_is"))
  return name.startswith("siss_") and name.endswith(f"_seed{SEEDS[0]}") and not variant


def relearned(run: ConfigDict, name: str, attack: str, stream: str) -> ConfigDict:
  """An attack on a deletion: denoising on what the stream has, for as many steps."""
  config = run.copy_and_resolve_references()
  config.update(init_from=f"run:{name}", attack=attack)
  config.method = common.method("denoising")
  config.streams = {"x": stream}
  return config
