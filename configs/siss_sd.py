"""Delete one memorised picture from Stable Diffusion 1.4, as Alberti et al. (2025) in section 5.3.

    python -m jaxunlearn.memorised --from=hub:CompVis/stable-diffusion-v1-4 --prompts=FILE \\
        --out=memorised
    python -m jaxunlearn.main --config=configs/siss_sd.py:siss,memorised/NAME --workdir=runs/siss_sd

The first command writes a folder NAME for each prompt: docs/stable_diffusion.md. The second deletes
what one of them has memorised; `:METHOD,FOLDER` runs another method of siss_mnist.py on another
folder. 35 steps of 16 pairs (ReTrack 30, K = 10), AdamW 1e-5, forget norm 750. `concept_ablation`
is that of Kumari et al. (2023) for memorised pictures: 400 steps of 8, rate 5e-7 a picture.
Evaluated each 5 steps on 16 pictures of the prompt and 16 of the original one, DDIM 50, guidance
7.5. Expected, over 45 prompts: SISS succeeds in 87% (71% by the original prompt), SISS without
importance sampling in 87% (69%), EraseDiff in 49% (24%), naive deletion in 56% (34%).

What is trained, and estimates of the memory it takes (of counts, on no device):
  all of the UNet, the default   about 36 GB of one GPU of 80, in bfloat16 and one micro-batch; with
                                 --config.mesh.fsdp=8 under 7 GB of each of eight
  --config.trained.pattern=attn2 the attention to text, 44M of 860M: about 11 GB in bfloat16, pairs
                                 8 at a time
  and --config.trained.rank=4    LoRA on it, 0.4M: 24 GB with pairs 8 at a time, 12 GB with 2
bfloat16 is --config.model.dtype=bfloat16, one micro-batch --config.train.micro_batches=1, pairs 8
at a time micro_batches=2. On eight devices micro_batches has to be 1 or 2.

Deviations: times are stratified over the batch (config.method.stratified); evaluated each 5 steps,
not each step, in float32; ReTrack's neighbours are found among the means of latents. Concept
ablation's anchors are the pictures of the modified prompt that are not the memorised one, which the
original prompt has to learn; its authors draw them by prompts that a language model rewrote.
"""

import json
import pathlib

from ml_collections import ConfigDict

from configs import common, siss_mnist

FOLDER = "memorised/mothers-influence-on-her-young-hippo"
FORGET_NORM = 750.0  # scaling_norm, of losses that are sums over 16,384 values of a latent
STEPS, OTHER_STEPS = 35, {"retrack": 30, "concept_ablation": 400}
PATTERN = "^unet/"


def get_config(variant: str = "siss"):
  """`variant` is METHOD or METHOD,FOLDER."""
  method, _, folder = variant.partition(",")
  return deletion(folder or FOLDER, method)


def deletion(folder: str, variant: str) -> ConfigDict:
  """The config of a deletion of what the data set in the folder has memorised."""
  config = common.get_config()
  config.init_from = "hub:CompVis/stable-diffusion-v1-4"
  config.model = ConfigDict({"name": "pretrained", "dtype": "float32"})
  config.data = common.source(
    "captions", path=f"{folder}/images", prompts=f"{folder}/prompts.txt", size=512
  )
  config.forget.file = f"{folder}/forget.txt"
  config.streams = {"x": "retain", "a": "forget"}
  config.method = method(variant)
  config.trained.pattern = PATTERN
  config.optimizer.update(learning_rate=1e-5, weight_decay=1e-2)
  steps = OTHER_STEPS.get(variant, STEPS)
  config.train.update(steps=steps, batch=16, micro_batches=16, checkpoint_every=5)
  config.eval.update(evaluation(folder))
  if variant == "concept_ablation":
    config.streams = anchors(folder)
    config.optimizer.learning_rate = 4e-6
    config.train.update(batch=8, micro_batches=8, checkpoint_every=50)
    config.eval.every = 50
  return config


def anchors(folder: str) -> dict:
  """The stream of concept ablation: what is kept, shown under the original prompt.

  Raises:
    ValueError: the folder has no data set, or the original prompt is the one of its pictures.
  """
  lists = [pathlib.Path(folder, name) for name in ("prompts.txt", "images/metadata.jsonl")]
  for path in lists:
    if not path.is_file():
      raise ValueError(f"{path} is not there; python -m jaxunlearn.memorised writes it")
  original, first = (path.read_text(encoding="utf-8").splitlines()[0] for path in lists)
  if json.loads(first)["text"] == original:
    raise ValueError(
      f"{folder} has one prompt, {original!r}; concept ablation needs a second one, whose other "
      "pictures the first is to give: find it with --vary=12, or a tab and a prompt in the list"
    )
  return {"alt": {"take": "retain", "c": f"class:{original}", "to": "own"}}


def method(variant: str) -> ConfigDict:
  """The paper's settings for Stable Diffusion."""
  made = siss_mnist.method(variant)
  settings = {"forget_norm": FORGET_NORM, "neighbours": 10, "weight": 0.5}
  if variant == "erasediff":
    settings["eta"] = 1e-2
  if variant == "concept_ablation":
    settings["lam"] = 1.0
  made.update({name: value for name, value in settings.items() if name in made})
  return made


def evaluation(folder: str) -> dict:
  """16 pictures of each of the two prompts: labels and quality; and scores of the prompts."""
  return {
    "metrics": ("memorised", "clip_iqa", "clip_score", "text_noise", "one_step"),
    "probe_metrics": ("memorised", "clip_iqa"),
    "memorised_by": ("kmeans", "sscd", "radius"),
    "memorised_file": f"{folder}/kmeans.npz",
    "target_name": "picture",
    "target_radius": 100.0,  # Webster's at 512 px: .113 sqrt(786,432)
    "samples": 32,
    "probe_samples": 32,
    "every": 5,
    "batch": 4,
    "sampler": "ddim",
    "steps": 50,
    "guidance": 6.5,
    "reference": "retain",
    "seed": 42,
  }
