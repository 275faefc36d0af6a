"""A run of a few seconds that trains a network for each of some sources, split at random.

python -m jaxunlearn.main --config=tests/tiny_cdm.py --workdir=...
"""

from configs import cdm_digits_clothes
from tests import tiny_config


def get_config():
  config = split(tiny_config.get_config(), 4)
  config.sources.lanes, config.sources.mesh = 4, -1
  config.train.update(steps=16, batch=8, checkpoint_every=4, log_every=1)
  config.eval.update(metrics=("copy_score", "nll"), samples=8, batch=8)
  config.compose.update(modes=("soft",), alone=False, attributed=1, attribution_probes=2)
  return config


def split(config, n):
  """The config of a run, for n sources instead."""
  whole = cdm_digits_clothes.compartments("uniform", n)
  config.update({name: whole[name] for name in ("sources", "compartment", "compose")})
  config.router = {"name": "kmeans", "k": 2}
  config.eval.steps = 2
  return config
