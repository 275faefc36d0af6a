"""Pretrain a U-ViT-M/4 (Bao et al., 2023) on a folder of images at 64 px: 130,171,524 parameters.

    python -m jaxunlearn.main --config=configs/pretrain_uvit_64.py --workdir=runs/uvit_64 \\
        --config.data.path=FOLDER

The sizes and the optimiser are those of the paper's ImageNet 64 model; gradients of any norm are
taken as they are. One TPU host or a few GPUs, days; not run here: docs/scaling.md has its memory
and FLOPs on TPUs, from the compiler.

Deviations: no classes, and a folder of images in place of ImageNet.
"""

from configs import common


def get_config():
  config = common.get_config()
  config.model = {"name": "uvit", **model()}
  config.data = common.source("folder", path="images_64", size=64)
  config.optimizer.update(
    learning_rate=3e-4, b1=0.99, b2=0.99, weight_decay=0.03, warmup=5000, clip=None
  )
  config.ema = 0.9999
  config.train.update(
    steps=300_000, batch=1024, micro_batches=4, log_every=100, checkpoint_every=5000
  )
  config.eval.update(
    before=False, metrics=("fid",), probe_metrics=(), samples=10_000, batch=256, reference="train"
  )
  return config


def model() -> dict:
  """U-ViT-M/4 at 64 px, unconditional."""
  return {
    "sample_size": 64,
    "in_channels": 3,
    "patch_size": 4,
    "width": 768,
    "depth": 16,
    "heads": 12,
    "time": "vpsde",
    "classes": (),
    "dtype": "bfloat16",
  }
