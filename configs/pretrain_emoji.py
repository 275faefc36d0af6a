"""A colour base model: emoji faces of 32 px in two styles, one of them 3% of the set, on CPU.

    python -m jaxunlearn.main --config=configs/pretrain_emoji.py --workdir=runs/pretrain_emoji
    python -m jaxunlearn.export --run=runs/pretrain_emoji --out=jaxunlearn/assets/pretrain_emoji \\
        --license=apache-2.0

1.58M parameters, 4,000 steps of 64. The embedded weights took 57 minutes: 2,259 steps on one core,
the rest on a mesh of two devices, one core each
(XLA_FLAGS=--xla_force_host_platform_device_count=2). `assets/pretrain_emoji/training.json` has the
loss curve; expected: results/siss_emoji.md.
"""

from configs import common, pretrain_mnist

GROUP = "Smileys & Emotion"
CLOWN = "noto/clown-face"
CLOWN_SHA256 = "sha256:8b5b31b7e6574ab5334751eae04261a042da1724018aa2d288f9d388985565e8"


def get_config():
  config = pretrain_mnist.get_config()
  config.model.update(model())
  config.data = common.source("emoji", group=GROUP, repeat=CLOWN, share=0.03)
  config.forget.update(ids=(CLOWN_SHA256,), label="")  # all copies: what the evaluation looks for
  config.train.update(steps=4000, checkpoint_every=250)
  config.eval.update(evaluation())
  return config


def model() -> dict:
  """2x2 pixels folded into channels: 16 and 8 pixels wide inside."""
  return {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (48, 96),
  }


def evaluation() -> dict:
  """No other picture of the set is nearer to the clown than 15.6. All are of one group."""
  return {
    "metrics": ("target_rate", "feature_fid", "nll", "copy_score"),
    "classifier": "emoji",
    "samples": 256,
    "reference": "retain",
    "target_name": "clown",
    "target_radius": 8.0,
  }
