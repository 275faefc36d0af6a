"""The paper's MNIST base model: 60,000 digits and 606 T-shirts (1.0%), 250 epochs (Alberti et al.).

    tfds build mnist fashion_mnist --file_format=array_record
    python -m jaxunlearn.main --config=configs/pretrain_mnist_full.py --workdir=runs/pretrain_full

One GPU or more; not run by this project's tests (118,000 steps of a 14.7M-parameter UNet).

Deviations: none known.
"""

from configs import common


def get_config():
  config = common.get_config()
  config.model.update(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    block_out_channels=(64, 128, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=2,
    attention_head_dim=8,
  )
  config.data = common.source("tfds_tshirt")
  config.forget.label = "tshirt"
  config.streams.x = "all"
  config.optimizer.update(
    learning_rate=1e-4, b1=0.95, weight_decay=1e-6, warmup=500, schedule="cosine"
  )
  config.ema = 0.9999
  config.train.update(steps=250 * 60606 // 128, batch=128, log_every=100, checkpoint_every=5000)
  config.eval.update(before=False, samples=10000, steps=50, batch=500)
  return config
