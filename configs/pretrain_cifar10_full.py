"""The class-conditional CIFAR-10 model of the unlearning papers: 38,632,323 parameters, 800K steps.

    tfds build cifar10 --file_format=array_record
    python -m jaxunlearn.main --config=configs/pretrain_cifar10_full.py \\
        --workdir=runs/pretrain_cifar10

One GPU or more, some days; not run here. The gold standard is the same without a class:
`--config.forget.label=airplane --config.streams.x=retain`. The 50,000 samples at the end, guided,
are kept: Selective Amnesia replays them. FID needs Inception's weights (`python -m
jaxunlearn.weights`); the training images are its reference.

Deviations:
  - Images are not mirrored; the papers mirror half of them.
  - The average of the weights warms up; theirs has its decay from the first step.
"""

from configs import common


def get_config():
  config = common.get_config()
  config.model.update(model())
  config.data = common.source("tfds_images", dataset="cifar10")
  config.sampler.clip_sample = False
  config.optimizer.update(learning_rate=2e-4, weight_decay=0.0, clip=1.0)
  config.ema = 0.9999  # of the evaluation; unlearning starts from the raw weights
  config.train.update(steps=800_000, batch=128, log_every=100, checkpoint_every=10_000)
  config.eval.update(before=False, keep=True, **evaluation())
  config.eval.samples = 50_000
  return config


def model() -> dict:
  """DDPM's CIFAR-10 network (Ho et al., 2020), with a table of ten classes and their null."""
  return {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "dropout": 0.1,
    "classes": (10,),
  }


def evaluation() -> dict:
  """1000 DDPM steps at guidance 2; FID of 5,000 samples a class against the images kept."""
  return {
    "metrics": ("fid", "stationarity"),
    "probe_metrics": (),
    "samples": 45_000,
    "asked": 500,
    "batch": 500,
    "sampler": "ddpm",
    "steps": 1000,
    "guidance": 2.0,
    "reference": "retain",
  }
