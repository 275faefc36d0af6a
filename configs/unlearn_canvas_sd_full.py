"""UnlearnCanvas as its authors run it (Zhang et al., 2024): Stable Diffusion 1.5, 512 px, prompts.

    python -m jaxunlearn.main --config=configs/unlearn_canvas_sd_full.py \\
        --workdir=runs/esd_canvas --config.init_from=FOLDER --config.data.path=PICTURES \\
        --config.eval.classifier=OBJECTS.safetensors \\
        --config.eval.style_classifier=STYLES.safetensors

FOLDER is their fine-tuned pipeline in diffusers' layout, PICTURES the data set as it is unpacked,
STYLE/OBJECT/IMAGE of 50 styles and Seed_Images. The classifiers are theirs, each the
`model_state_dict` of its file alone, as .safetensors. `:NAME` takes another of METHODS;
`--config.forget.style='' --config.forget.label=Dogs` forgets an object. GPU; not run here.

The answer set is theirs: 51 styles x 20 objects x 5 seeds, `A Dogs image in Van Gogh style.`, 100
DDIM steps, scale 9 (guidance 8), saved as JPEG; a sample's noise depends on its seed and its place
in the loop over styles and objects, as there, where the generator is seeded once before it. UA, IRA
and CRA are as their script takes them, CRA over the unlearned style's prompts too. Photographs are
asked for as `Seed Images style`.

Deviations, besides those of the methods:
  - The noises are those of JAX, not of the authors' device.
  - FID is not measured. Photographs are trained on under the prompt that they are asked for.
  - Steps and rates are those of the benchmark's READMEs where they were at hand: ESD 1,000 steps at
    1e-5, Concept Ablation 100 at 2e-6 a picture, SalUn 1e-5 for the keys, values, queries and
    outputs of the attention to text. The others', DiMUM's among them, are chosen here.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common, unlearn_little_sd
from jaxunlearn import errors, latents, prompts
from jaxunlearn.diffusion import sampling

TEMPLATE = "A {class} image in {style} style."
SEEDS = (188, 288, 588, 688, 888)
# variant of unlearn_little_sd -> fields of its method, what is trained, steps and learning rate
METHODS = {
  "esd_x": ({"partial": 1000}, "attn2", 1000, 1e-5),
  "ca_model": ({}, "attn2_kv", 100, 1.6e-5),
  "uce": ({}, "attn2_kv", 0, 0.0),
  "salun": ({"mask_guidance": 6.5}, "attn2", 240, 1e-5),
  "erasediff": ({"inner_steps": 72, "outer_steps": 36}, "attn2", 540, 5e-5),
  "dimum": ({}, "^unet/", 1000, 1e-5),
}


def get_config(variant: str = "esd_x"):
  errors.check_choice("variant", variant, METHODS)
  config = common.get_config()
  config.model = ConfigDict({"name": "pretrained", "dtype": "bfloat16"})
  with config.unlocked():
    config.prompts = ConfigDict(dataclasses.asdict(prompts.Options(template=TEMPLATE, blank="_")))
    config.codec = ConfigDict(dataclasses.asdict(latents.Options()))
  config.data = common.source("folder", layout="style/class", size=512, heldout=10)
  config.forget.style = "Van_Gogh"
  config.sampler.update(dataclasses.asdict(sampling.Options(**SAMPLER)))
  config = unlearn_little_sd.unlearning(config, "FOLDER", variant)
  fields, trained, steps, rate = METHODS[variant]
  config.method = common.method(config.method.name, **fields)
  config.trained.pattern = trained
  config.optimizer.update(learning_rate=rate, schedule="constant")
  config.train.update(steps=steps, batch=8, micro_batches=1, checkpoint_every=250)
  config.eval.update(evaluation())
  return config


SAMPLER = {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}


def evaluation() -> dict:
  """The answer set, and what is taken of it."""
  return {
    "before": False,
    "seeds": SEEDS,
    "sampler": "ddim",
    "steps": 100,
    "guidance": 8.0,
    "batch": 4,
    "jpeg": 75,  # Pillow's own
    "cra": "all",
    "metrics": ("unlearning_accuracy", "kept_accuracy"),
  }
