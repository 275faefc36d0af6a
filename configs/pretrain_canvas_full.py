"""A model of 20 objects in 51 styles on the images of UnlearnCanvas (Zhang et al., 2024), at 64 px.

    python -m jaxunlearn.main --config=configs/pretrain_canvas_full.py \\
        --workdir=runs/pretrain_canvas --config.data.path=FOLDER

FOLDER has the data set's own layout, STYLE/OBJECT/IMAGE, of the 50 styles that its benchmark takes
and the photographs (Seed_Images); one image in ten is held out.

Deviations: this is a stand-in. The published protocol fine-tunes Stable Diffusion at 512 px and
names object and style in the prompt. This is a UNet with one condition for each, on the same
images, evaluated by the same measures (UA, IRA, CRA): its numbers are not to be compared with the
leaderboard's. Steps and width are ours: 41,524,867 parameters. One GPU or more; not run here.
"""

from configs import common, pretrain_cifar10_full


def get_config():
  config = pretrain_cifar10_full.get_config()
  config.model.update(model())
  config.data = common.source("folder", layout="style/class", size=64, heldout=10)
  config.train.steps = 200_000
  config.eval.update(evaluation())
  return config


def model() -> dict:
  """Four levels from 64 to 8 px, attention at 16."""
  return {
    "sample_size": 64,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "classes": (20, 51),
  }


def evaluation() -> dict:
  """The benchmark's five images of every object and style by 100 DDIM steps; guidance is ours."""
  return {
    "samples": 50 * 20 * 5,
    "asked": 20 * 5,
    "batch": 100,
    "sampler": "ddim",
    "steps": 100,
    "guidance": 2.0,
  }
