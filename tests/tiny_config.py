"""A run of a few seconds: 96 digits and 12 T-shirts, a UNet of one level at 7 px.

python -m jaxunlearn.main --config=tests/tiny_config.py:siss --workdir=...
"""

from configs import common

SMALL = {"selective_amnesia": {"fisher_rows": 8}}  # 5,000 by default, of 1,000 times each


def get_config(method="denoising"):
  config = common.get_config()
  config.model.update(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    patch_size=4,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=4,
  )
  config.data.update(digits=96, share=1 / 9)
  config.forget.label = "tshirt"
  config.method = common.method(method, **SMALL.get(method, {}))
  config.streams = {"x": "retain", "a": "forget"}
  config.optimizer.learning_rate = 1e-3
  config.ema = 0.99
  config.train.update(steps=12, batch=16, checkpoint_every=4)
  config.eval.update(before=False, after=False, metrics=())
  return config
