"""Delete a memorised picture from the little Stable Diffusion, on two CPU cores and offline.

    python -m jaxunlearn.memorised --from=assets:little_sd --scale=4 --steps=20 --batch=32 \\
        --prompts=jaxunlearn/assets/little_sd/memorised.txt --out=runs/memorised_little_sd
    python -m jaxunlearn.main --config=configs/siss_little_sd.py --workdir=runs/siss_little_sd

The first command finds the eight pictures that the model has memorised, each by a prompt that shows
it now and then; the second deletes one. `:METHOD,FOLDER` runs another method on another prompt.
Steps and batch are the paper's: siss_sd.py; concept ablation has as many. The rate is larger and
the forget norm relative, since model and latents are smaller; evaluated by 16 pictures of both
prompts together after 12 and 24 steps, and by 16 of each at the end. Expected:
results/siss_little_sd.md.
"""

from ml_collections import ConfigDict

from configs import common, siss_sd

FOLDER = "runs/memorised_little_sd"
NAME = "limited-edition-whale-poster"
RATE = 4e-4


def get_config(variant: str = "siss"):
  """`variant` is METHOD or METHOD,FOLDER."""
  method, _, folder = variant.partition(",")
  return deletion(folder or f"{FOLDER}/{NAME}", method)


def deletion(folder: str, variant: str) -> ConfigDict:
  """As siss_sd.deletion."""
  config = siss_sd.deletion(folder, variant)
  config.init_from = "assets:little_sd"
  config.data.size = 64
  config.method = method(variant)
  config.optimizer.learning_rate = RATE
  steps = min(config.train.steps, siss_sd.STEPS)
  config.train.update(steps=steps, batch=16, micro_batches=1)
  config.eval.update(
    metrics=("memorised", "typical", "text_noise", "one_step"),
    probe_metrics=("memorised", "typical"),
    memorised_by=("kmeans", "radius"),
    target_radius=12.5,  # Webster's at 64 px
    classifier="little_styles",
    batch=16,
    probe_samples=16,
    every=12,
    steps=20,
    prompt_steps=20,
    guidance=3.0,
  )
  return config


def method(variant: str) -> ConfigDict:
  """The paper's settings, but for a forget norm that is relative to the kept gradient's."""
  made = siss_sd.method(variant)
  if "forget_norm" in made:
    made.forget_norm = common.method(made.name).forget_norm
  return made
