"""Delete pictures from your own model: weights in diffusers' layout, and a folder of images.

    python -m jaxunlearn.main --config=configs/siss_folder.py --workdir=runs/mine \\
        --config.init_from=hub:google/ddpm-cifar10-32 --config.data.path=FOLDER \\
        --config.data.size=32 --config.forget.ids=cat/0012.png

init_from is a folder, hub:OWNER/NAME or a run's working directory; model and process are read from
it. The relative forget norm needs no tuning to the size of the picture; the learning rate is that
of CelebA-HQ: watch the probes, and judge the end by the metrics. `:NAME` runs another method.
"""

from configs import common, siss_mnist


def get_config(variant: str = "siss"):
  config = common.get_config()
  config.model = {"name": "pretrained", "dtype": "float32"}
  config.data = common.source("folder")
  config.streams = {"x": "retain", "a": "forget"}
  config.method = siss_mnist.method(variant)
  config.optimizer.update(learning_rate=5e-6, b1=0.95, weight_decay=1e-6)
  config.train.update(steps=60, batch=64, micro_batches=8, checkpoint_every=10)
  config.eval.update(
    metrics=("copy_score", "target_rate", "nll"),
    probe_metrics=("copy_score",),
    samples=64,
    batch=16,
    steps=50,
    every=20,
    probe_samples=16,
    reference="retain",
    target_name="target",
    nll_probes=1,
  )
  return config
